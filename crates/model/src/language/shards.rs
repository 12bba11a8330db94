//! One rank's parts of the layers of a stack. A layer is gathered when it is needed, the next one while it computes, into one
//! of two places that the layers of a stack take in turn.

use std::fmt;
use std::sync::Arc;

use collectives::Gathering;
use tch::{Device, Kind, Tensor};

use super::peers::Peers;
use super::stack::FrozenLayer;

/// Bytes to which each tensor of a layer is aligned, and each rank's part.
pub(super) const ALIGNMENT: i64 = 64;

/// This rank's part of every layer. Layers of a stack are alike: one form is that of all.
pub(super) struct Shards<L> {
    form: Form<L>,
    /// `[layers, bytes]`; what all ranks have of a layer, one after another, is the layer.
    parts: Tensor,
    peers: Arc<Peers>,
    /// Places for two gathered layers: the one that computes and the one that comes. They stay, because what is kept for the
    /// backward pass would lie between new ones and leave holes.
    rooms: [Tensor; 2],
    /// A layer that is under way.
    ahead: Option<(usize, Gathering)>,
}

/// A layer without its weights, and where each of them lies in the layer's bytes, in the order of [`FrozenLayer::map`].
struct Form<L> {
    layer: L,
    places: Vec<Place>,
}

/// A tensor among a layer's bytes.
struct Place {
    offset: i64,
    bytes: i64,
    shape: Vec<i64>,
    kind: Kind,
}

impl<L: FrozenLayer> Shards<L> {
    /// Takes the parts of `layers`; `None` where there are none.
    pub fn of(mut layers: impl ExactSizeIterator<Item = L>, peers: Arc<Peers>) -> Option<Self> {
        let count = layers.len() as i64;
        let first = layers.next()?;
        let (form, device) = Form::of(&first);
        let part = part_of(form.places.iter().map(Place::room).sum(), peers.world_size);
        // In one piece, and nothing small beside: between the layers that come and go while a model loads, what stays would
        // leave holes as large as the model.
        let parts = Tensor::zeros([count, part], (Kind::Uint8, device));
        let rooms = [(); 2].map(|()| Tensor::zeros([part * peers.world_size], (Kind::Uint8, device)));
        for (index, layer) in std::iter::once(first).chain(layers).enumerate() {
            form.pack(&layer, &rooms[0]);
            parts.get(index as i64).copy_(&rooms[0].narrow(0, peers.rank * part, part));
        }
        Some(Self { form, parts, rooms, peers, ahead: None })
    }

    /// Layer `index`, whole, until the next but one is asked for. Starts to gather the `next` one: before anything is asked of the device for this one, because a
    /// GPU's messages wait for what was asked of it earlier.
    pub fn layer(&mut self, index: usize, next: Option<usize>) -> L {
        let bytes = self.gathered(index);
        self.ahead = next.and_then(|next| Some((next, self.start(next)?)));
        self.form.filled(&bytes)
    }

    fn gathered(&mut self, index: usize) -> Tensor {
        let underway = match self.ahead.take() {
            Some((ahead, gathering)) if ahead == index => Some(gathering),
            other => {
                // Every rank has started that one, and so every rank ends it.
                other.map(|(_, gathering)| self.peers.finish(gathering));
                self.start(index)
            }
        };
        // Where a peer is gone the pass goes on with whatever is here, to its end, where its caller asks.
        let gathered = underway.and_then(|gathering| self.peers.finish(gathering));
        gathered.unwrap_or_else(|| self.rooms[0].shallow_clone())
    }

    /// In the place that was not the last one.
    fn start(&mut self, index: usize) -> Option<Gathering> {
        self.rooms.swap(0, 1);
        self.peers.start(&self.parts.get(index as i64), &self.rooms[0])
    }
}

impl<L: FrozenLayer> Form<L> {
    /// That of `layer`, and the device where it is.
    fn of(layer: &L) -> (Self, Device) {
        let (mut places, mut offset, mut device) = (Vec::new(), 0, Device::Cpu);
        let layer = layer.map(&mut |tensor| {
            let bytes = (tensor.numel() * tensor.kind().elt_size_in_bytes()) as i64;
            let place = Place { offset, bytes, shape: tensor.size(), kind: tensor.kind() };
            offset += place.room();
            places.push(place);
            device = tensor.device();
            Tensor::zeros([0], (tensor.kind(), device))
        });
        (Self { layer, places }, device)
    }

    /// Copies the weights of `layer` to their places in `bytes`.
    fn pack(&self, layer: &L, bytes: &Tensor) {
        let mut places = self.places.iter();
        layer.map(&mut |tensor| {
            if let Some(place) = places.next() {
                place.of(bytes).copy_(tensor);
            }
            tensor.shallow_clone()
        });
    }

    /// The layer whose bytes these are; its tensors are views of them.
    fn filled(&self, bytes: &Tensor) -> L {
        let mut places = self.places.iter();
        self.layer.map(&mut |empty| match places.next() {
            Some(place) => place.of(bytes),
            None => empty.shallow_clone(),
        })
    }
}

impl Place {
    /// The tensor that lies here, a view of `bytes`.
    fn of(&self, bytes: &Tensor) -> Tensor {
        let raw = bytes.narrow(0, self.offset, self.bytes);
        raw.view_dtype(self.kind).view(self.shape.as_slice())
    }

    /// Bytes from this tensor to the next.
    fn room(&self) -> i64 {
        aligned(self.bytes)
    }
}

impl<L> fmt::Debug for Shards<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "parts of layers, {:?}, on {:?}", self.parts, self.peers)
    }
}

/// Bytes that a tensor takes up in a layer.
pub(super) const fn aligned(bytes: i64) -> i64 {
    (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT
}

/// Bytes of one rank's part of a layer of so many.
pub(super) const fn part_of(layer: i64, world_size: i64) -> i64 {
    aligned((layer + world_size - 1) / world_size)
}
