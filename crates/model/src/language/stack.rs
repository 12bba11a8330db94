//! A stack of frozen layers: whole on this device, or a part of each on every rank.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::Tensor;

use super::peers::Peers;
use super::shards::Shards;
use crate::layers::recomputed;

/// A frozen layer, tensor by tensor.
pub(super) trait FrozenLayer: Send + Sized + 'static {
    /// The same layer with `of` each tensor in its place; they come in the same order each time.
    fn map(&self, of: &mut dyn FnMut(&Tensor) -> Tensor) -> Self;
}

/// Where the layers of a model are kept.
#[derive(Clone, Debug)]
pub(super) enum Keeping {
    /// Here.
    Whole,
    /// In equal parts on these ranks.
    Parted(Arc<Peers>),
}

/// The layers of a stack, from the first to the last.
#[derive(Debug)]
pub(super) enum Stack<L> {
    Whole(Vec<L>),
    Parted { shards: Arc<Mutex<Shards<L>>>, peers: Arc<Peers>, len: usize },
}

impl<L: FrozenLayer> Stack<L> {
    /// Layers that `load` gives by their number. Of one that is parted no more than one is whole at a time.
    pub fn load(keeping: &Keeping, count: i64, load: impl FnMut(i64) -> L) -> Self {
        let layers = (0..usize::try_from(count).unwrap_or_default()).map(|index| index as i64).map(load);
        match keeping {
            Keeping::Whole => Self::Whole(layers.collect()),
            Keeping::Parted(peers) => {
                let len = layers.len();
                let shards = Shards::of(layers, Arc::clone(peers));
                shards.map_or(Self::Whole(Vec::new()), |shards| Self::Parted {
                    shards: Arc::new(Mutex::new(shards)),
                    peers: Arc::clone(peers),
                    len,
                })
            }
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Self::Whole(layers) => layers.len(),
            Self::Parted { len, .. } => *len,
        }
    }

    /// Whether a pass with a graph keeps the layers' inputs alone: where that is `asked`, and of parted layers always, because
    /// autograd would hold all of them at once.
    pub fn recomputes(&self, asked: bool) -> bool {
        asked || matches!(self, Self::Parted { .. })
    }

    /// What `run` makes of layer `index`, where layers are gone through from the first to the last without a graph.
    pub fn with<R>(&self, index: usize, run: impl FnOnce(&L) -> R) -> R {
        match self {
            Self::Whole(layers) => run(&layers[index]),
            Self::Parted { shards, len, .. } => run(&gathered(shards, index, above(index, *len))),
        }
    }

    /// What `run` makes of layer `index` and `inputs`, which alone are kept for the backward pass. That one goes through the
    /// layers from the last to the first.
    pub fn recomputed(
        &self,
        index: usize,
        inputs: &[&Tensor],
        run: impl Fn(&L, &[Tensor]) -> Tensor + Send + 'static,
    ) -> Tensor {
        match self {
            Self::Whole(layers) => {
                let layer = layers[index].map(&mut Tensor::shallow_clone);
                recomputed(inputs, move |inputs| run(&layer, inputs))
            }
            Self::Parted { shards, len, .. } => {
                let (shards, above) = (Arc::clone(shards), above(index, *len));
                let is_again = AtomicBool::new(false);
                recomputed(inputs, move |inputs| {
                    let next = match is_again.swap(true, Ordering::Relaxed) {
                        false => above,
                        true => index.checked_sub(1),
                    };
                    run(&gathered(&shards, index, next), inputs)
                })
            }
        }
    }
}

fn above(index: usize, len: usize) -> Option<usize> {
    (index + 1 < len).then_some(index + 1)
}

fn gathered<L: FrozenLayer>(shards: &Mutex<Shards<L>>, index: usize, next: Option<usize>) -> L {
    locked(shards).layer(index, next)
}

fn locked<L>(shards: &Mutex<Shards<L>>) -> MutexGuard<'_, Shards<L>> {
    shards.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stack whatever its layers are.
pub(super) trait AnyStack {
    /// Who holds the layers with this rank, if anybody.
    fn peers(&self) -> Option<&Arc<Peers>>;

    /// Gives other ranks this one's part of every layer, as [`Stack::with`] does on its way from the first to the last.
    fn go_along(&self);

    /// Bytes of each layer as a rank of one holds it.
    #[cfg(test)]
    fn bytes(&self) -> Vec<i64>;
}

impl<L: FrozenLayer> AnyStack for Stack<L> {
    fn peers(&self) -> Option<&Arc<Peers>> {
        match self {
            Self::Whole(_) => None,
            Self::Parted { peers, .. } => Some(peers),
        }
    }

    fn go_along(&self) {
        (0..self.len()).for_each(|index| self.with(index, |_| ()));
    }

    #[cfg(test)]
    fn bytes(&self) -> Vec<i64> {
        let of = |layer: &L| {
            let mut bytes = 0;
            layer.map(&mut |tensor| {
                let own = tensor.numel() * tensor.kind().elt_size_in_bytes();
                bytes += super::shards::aligned(own as i64);
                tensor.shallow_clone()
            });
            bytes
        };
        (0..self.len()).map(|index| self.with(index, of)).collect()
    }
}

/// Before a pass that other ranks may not make, or not now: returns when all of them go through the stack `wanted`, and where
/// `None` is, when nobody wants any more. Until then this rank goes along with the others.
pub(super) fn meet(stacks: &[&dyn AnyStack], wanted: Option<usize>) {
    let Some(peers) = stacks.iter().find_map(|stack| stack.peers()) else { return };
    while let Some(agreed) = peers.agree(wanted) {
        if Some(agreed) == wanted {
            return;
        }
        stacks[agreed].go_along();
    }
}
