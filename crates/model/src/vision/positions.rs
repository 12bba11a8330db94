//! Learned position embeddings, moved to another grid.

use tch::Tensor;

use crate::layers::dims;

/// Resizes position embeddings `[1, 1 + G * G, V]` or `[1 + G * G, V]` to a grid of `grid` x `grid`.
///
/// The class row is kept; the patch rows are resized bicubically in single precision without antialias. EVA's and
/// DINOv2's are resized with `align_corners` false, CLIP's with true (LAVIS, `interpolate_pos_embed`).
///
/// # Panics
/// When the patch rows are no square.
pub fn resize_positions(positions: &Tensor, grid: i64, align_corners: bool) -> Tensor {
    let mut shape = positions.size();
    let (rows, width) = (shape[shape.len() - 2], shape[shape.len() - 1]);
    let old = patch_grid(rows).unwrap_or_else(|| panic!("{rows} rows are no class token and square grid"));
    if old == grid {
        return positions.shallow_clone();
    }
    let table = positions.to_kind(tch::Kind::Float).reshape([1, rows, width]);
    let class = table.narrow(1, 0, 1);
    let map = table.narrow(1, 1, rows - 1).reshape([1, old, old, width]).permute([0, 3, 1, 2]);
    let map = map.contiguous().upsample_bicubic2d([grid, grid], align_corners, None, None);
    let patches = map.permute([0, 2, 3, 1]).reshape([1, grid * grid, width]);
    let resized = Tensor::cat(&[class, patches], 1);
    let [_, rows, _] = dims(&resized);
    let at = shape.len() - 2;
    shape[at] = rows;
    resized.reshape(shape)
}

/// G, when `rows` is `1 + G * G`.
pub(super) fn patch_grid(rows: i64) -> Option<i64> {
    let grid = (rows - 1).checked_isqrt()?;
    (grid > 0 && grid * grid == rows - 1).then_some(grid)
}
