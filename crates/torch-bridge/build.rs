//! Compiles the C++ shim against the libtorch that torch-sys found: about 40 s of g++ on one core, once.

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    for watched in ["cpp", "build.rs"] {
        println!("cargo:rerun-if-changed={watched}");
    }
    for watched in ["LIBTORCH_INCLUDE", "CUDA_HOME"] {
        println!("cargo:rerun-if-env-changed={watched}");
    }
    println!("cargo:rustc-check-cfg=cfg(nccl)");
    // torch-sys (links = "tch") passes on where libtorch is, whether from LIBTORCH or from Python.
    let lib =
        PathBuf::from(env::var_os("DEP_TCH_LIBTORCH_LIB").expect("torch-sys names libtorch's lib folder"));
    let root = lib.parent().expect("a lib folder has a parent").to_owned();
    let include = env::var_os("LIBTORCH_INCLUDE").map_or(root, PathBuf::from).join("include");

    let mut build = cc::Build::new();
    build.cpp(true).pic(true).std("c++17").opt_level(1).debug(false).define("USE_C10D_GLOO", None);
    build.include("cpp/gloo_names").include("cpp");
    // -isystem: warnings of libtorch's headers are not ours to mend.
    for folder in [include.clone(), include.join("torch/csrc/api/include")] {
        build.flag("-isystem").flag(folder);
    }
    build.files([
        "cpp/compute.cpp",
        "cpp/recompute.cpp",
        "cpp/c10d.cpp",
        "cpp/reducer.cpp",
        "cpp/upload.cpp",
    ]);
    if lib.join("libtorch_cuda.so").exists() {
        println!("cargo:rustc-cfg=nccl");
        build.define("USE_C10D_NCCL", None).file("cpp/nccl.cpp");
        for folder in cuda_includes(&lib) {
            build.flag("-isystem").flag(folder);
        }
    }
    // Clippy links nothing, and Cargo runs this once more for it.
    if !cfg!(clippy) {
        build.compile("torch_bridge");
    }
}

/// Header folders of CUDA and NCCL: a toolkit at `CUDA_HOME`, or the `nvidia-*` wheels, which lie beside `torch/` in
/// site-packages and in our own `.libtorch/`.
fn cuda_includes(lib: &Path) -> Vec<PathBuf> {
    let toolkit = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("include"));
    let beside = lib.ancestors().skip(1).take(2).flat_map(|folder| {
        ["cu13/include", "cu13/include/cccl", "nccl/include"].map(|inner| folder.join("nvidia").join(inner))
    });
    toolkit.into_iter().chain(beside).filter(|folder| folder.is_dir()).collect()
}
