mod common;
#[test]
fn dbg() {
    let world = common::TinyWorld::new();
    let mut pictures = common::pictures();
    for picture in &mut pictures[..2] {
        picture.png.truncate(picture.png.len() / 2);
    }
    common::write_shard(&world.path("shards/train-000000.tar"), &pictures[..24]);
    let quick = ["stage1.steps=2", "stage2.steps=2"];
    let e = common::Launch { sets: &quick, ..world.run("few") }.end();
    let _ = std::process::Command::new("cp").args(["-r", world.path("").to_str().unwrap(), "/tmp/dbgworld"]).status();
    println!("{}", e.stderr);
}
