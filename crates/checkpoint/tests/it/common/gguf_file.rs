//! GGUF files, field by field.

pub fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

pub fn setting(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(key)[..], &kind.to_le_bytes(), value].concat()
}

/// A line of the table of tensors; `sizes` innermost first, as in the file.
pub fn line(name: &str, sizes: &[u64], kind: u32, start: u64) -> Vec<u8> {
    let mut bytes = [&text(name)[..], &(sizes.len() as u32).to_le_bytes()].concat();
    sizes.iter().for_each(|size| bytes.extend_from_slice(&size.to_le_bytes()));
    [&bytes[..], &kind.to_le_bytes(), &start.to_le_bytes()].concat()
}

pub fn gguf(settings: &[Vec<u8>], lines: &[Vec<u8>], data: &[u8]) -> Vec<u8> {
    let counts = [lines.len() as u64, settings.len() as u64].map(u64::to_le_bytes).concat();
    let mut bytes =
        [&b"GGUF"[..], &3u32.to_le_bytes(), &counts, &settings.concat(), &lines.concat()].concat();
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    [&bytes[..], data].concat()
}

/// One plain and one Q8_0 tensor.
pub fn whole() -> Vec<u8> {
    let list =
        [&5u32.to_le_bytes()[..], &2u64.to_le_bytes(), &7i32.to_le_bytes(), &(-1i32).to_le_bytes()].concat();
    let settings = [
        setting("name", 8, &text("tiny")),
        setting("heads", 4, &9u32.to_le_bytes()),
        setting("eps", 6, &0.5f32.to_le_bytes()),
        setting("types", 9, &list),
    ];
    let lines = [line("plain", &[3, 2], 0, 0), line("quantised", &[32, 1], 8, 32)];
    let mut data: Vec<u8> = (0..6).flat_map(|value| (value as f32).to_le_bytes()).collect();
    data.resize(32, 0);
    data.extend_from_slice(&[0x00, 0x3c]); // 1.0 in 16 bits
    data.extend(0..32u8);
    gguf(&settings, &lines, &data)
}
