//! Captions of a split's pictures, and the controls beside them.

use collectives::{CommError, ProcessGroup};
use model::Stage2;
use monitor::CaptionScores;
use tch::{Device, Kind, Tensor};

use super::split::Split;
use super::{Progress, share_of};
use crate::config::GenerationConfig;
use crate::error::TrainError;
use crate::stage::Stage;
use crate::texts::LmCaptions;

/// Pictures captioned at once.
const PICTURES_AT_ONCE: usize = 64;

/// Captions of some pictures of a split.
pub(crate) struct Captions {
    /// Pair numbers in the split, in random order.
    pub pictures: Vec<usize>,
    /// Their own captions.
    pub references: Vec<String>,
    /// What stage 2 says of them.
    pub generated: Vec<String>,
    /// What the control says that never saw stage 1.
    pub without_stage1: Option<Vec<String>>,
}

impl Captions {
    /// The figures of `eval.json`.
    pub fn scores(&self) -> CaptionScores {
        let references: Vec<Vec<String>> = self.references.iter().map(|text| vec![text.clone()]).collect();
        let own = score::captions(&references, &self.generated);
        // The pictures are in random order, so that the next one's caption is a random other one's.
        let mut shuffled = self.generated.clone();
        shuffled.rotate_right(1);
        let control = self.without_stage1.as_ref().map(|captions| score::captions(&references, captions));
        CaptionScores {
            count: self.pictures.len() as u64,
            cider: own.cider,
            exact: own.exact,
            near: own.near,
            cider_shuffled: score::captions(&references, &shuffled).cider,
            cider_without_stage1: control.as_ref().map(|figures| figures.cider),
            exact_without_stage1: control.as_ref().map(|figures| figures.exact),
        }
    }
}

/// Writes captions for one split; ranks share the pictures.
pub(super) struct Writer<'a> {
    pub split: &'a Split,
    pub pictures: Vec<usize>,
    pub lm: &'a LmCaptions,
    pub generation: &'a GenerationConfig,
    pub group: &'a dyn ProcessGroup,
    pub progress: Progress<'a>,
}

impl Writer<'_> {
    /// # Errors
    /// [`TrainError::Read`] when features cannot be read, [`TrainError::Peer`] when a rank is gone.
    pub fn captions(self, stage2: &Stage, without_stage1: Option<&Stage>) -> Result<Captions, TrainError> {
        let generated = self.write(stage2)?;
        let without_stage1 = without_stage1.map(|stage| self.write(stage)).transpose()?;
        let references =
            self.pictures.iter().map(|&picture| self.split.caption(picture).to_owned()).collect();
        Ok(Captions { pictures: self.pictures, references, generated, without_stage1 })
    }

    fn write(&self, stage: &Stage) -> Result<Vec<String>, TrainError> {
        let Stage::Two(stage2, _) = stage else { unreachable!("captions come from stage 2") };
        let written = self.write_own(stage2);
        // Others may write longer, and need this rank's part of the language model: also where somebody asked for a stop.
        let accompanied = stage2.accompany();
        let rows = written?;
        accompanied?;
        let rows = share(&rows, self.lm.max_new_tokens, self.group)?;
        rows.iter().map(|ids| self.lm.decode(ids)).collect()
    }

    /// A row for each picture, of which this rank fills its share.
    fn write_own(&self, stage2: &Stage2) -> Result<Vec<Vec<i64>>, TrainError> {
        let own: Vec<usize> = share_of(self.pictures.len(), self.group).collect();
        let mut rows = vec![Vec::new(); self.pictures.len()];
        let question = self.lm.question();
        let options = self.generation.options(self.lm.max_new_tokens, &[self.lm.eos]);
        for some in own.chunks(PICTURES_AT_ONCE) {
            let pictures: Vec<usize> = some.iter().map(|&i| self.pictures[i]).collect();
            let features = self.split.features(&pictures)?.to_device(self.group.device());
            let ids = stage2.caption(&features, &question, &options);
            stage2.check_peers()?;
            for (&i, ids) in some.iter().zip(ids) {
                rows[i] = ids;
            }
            (self.progress)(some.len())?;
        }
        Ok(rows)
    }
}

/// All ranks' rows: each row is empty on every rank but the one that made it.
fn share(rows: &[Vec<i64>], width: usize, group: &dyn ProcessGroup) -> Result<Vec<Vec<i64>>, CommError> {
    // Ids are moved up by one, so that 0 says "nothing here" and the sum over ranks is the union.
    let flat: Vec<i64> =
        rows.iter().flat_map(|row| (0..width).map(|i| row.get(i).map_or(0, |id| id + 1))).collect();
    let mut all = Tensor::from_slice(&flat).to_device(group.device());
    group.all_reduce_sum(&mut all)?;
    let all = Vec::<i64>::try_from(all.to_device(Device::Cpu).to_kind(Kind::Int64)).unwrap_or_default();
    Ok(all.chunks(width).map(|row| row.iter().filter(|&&id| id > 0).map(|id| id - 1).collect()).collect())
}
