//! A weight file as the frozen parts take it apart: every tensor is asked for by name and shape, and whatever is
//! wrong is told at the end, all at once.

use std::collections::BTreeMap;
use std::fmt;

use tch::{Device, Kind, Tensor};

/// Tensors by name, on their way into a model.
///
/// A wrong name or shape does not stop the loading: it is written down, zeros stand in, and [`Weights::finish`] lists
/// every problem of the file in one error. A model that was built before `finish` said `Ok` is not to be used.
#[derive(Debug)]
pub struct Weights {
    tensors: BTreeMap<String, Entry>,
    reader: Option<Reader>,
    /// What is not there is drawn, not missing.
    random: bool,
    ignored: Vec<String>,
    missing: Vec<String>,
    misshapen: Vec<Misshapen>,
    unreadable: Vec<String>,
}

/// Closed: a tensor is here, or in a file.
#[derive(Debug)]
enum Entry {
    Here(Tensor),
    /// Its shape.
    InFile(Vec<i64>),
}

impl Entry {
    fn shape(&self) -> Vec<i64> {
        match self {
            Self::Here(tensor) => tensor.size(),
            Self::InFile(shape) => shape.clone(),
        }
    }
}

/// Gives a tensor of the file by its name, or says why not.
struct Reader(Box<Read>);

type Read = dyn FnMut(&str) -> Result<Tensor, String>;

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a file")
    }
}

/// A tensor of the right name and another shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misshapen {
    /// Its name in the file.
    pub name: String,
    /// What the model needs.
    pub wanted: Vec<i64>,
    /// What the file has.
    pub found: Vec<i64>,
}

/// Weights do not fit the model that was configured: name other weights, or correct the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WeightsError {
    /// Asked for and not there.
    pub missing: Vec<String>,
    /// There and not asked for.
    pub unexpected: Vec<String>,
    /// There, with another shape.
    pub misshapen: Vec<Misshapen>,
    /// There, and the file did not give it: name and reason.
    pub unreadable: Vec<String>,
}

impl Weights {
    /// Takes every tensor of `map`, whatever its kind and device.
    #[must_use]
    pub fn new(map: BTreeMap<String, Tensor>) -> Self {
        Self::of(map.into_iter().map(|(name, tensor)| (name, Entry::Here(tensor))).collect(), None)
    }

    /// Tensors of a file by name and shape, each of which `read` gives when it is asked for: so that no more than what the
    /// model keeps is in memory. `read` says why it cannot.
    #[must_use]
    pub fn in_file(
        shapes: impl IntoIterator<Item = (String, Vec<i64>)>,
        read: impl FnMut(&str) -> Result<Tensor, String> + 'static,
    ) -> Self {
        let tensors = shapes.into_iter().map(|(name, shape)| (name, Entry::InFile(shape))).collect();
        Self::of(tensors, Some(Reader(Box::new(read))))
    }

    fn of(tensors: BTreeMap<String, Entry>, reader: Option<Reader>) -> Self {
        Self {
            tensors,
            reader,
            random: false,
            ignored: Vec::new(),
            missing: Vec::new(),
            misshapen: Vec::new(),
            unreadable: Vec::new(),
        }
    }

    /// No file: every tensor is drawn from N(0, 0.02²) as it is asked for. For measuring time and memory at a size whose
    /// weights are not here.
    #[must_use]
    pub fn random() -> Self {
        Self { random: true, ..Self::new(BTreeMap::new()) }
    }

    /// Removes and returns `name`, in its own kind; zeros (and a note for [`Weights::finish`]) when it is not there or
    /// is not of this `shape`.
    pub fn take(&mut self, name: &str, shape: &[i64]) -> Tensor {
        match self.tensors.remove(name) {
            Some(Entry::Here(tensor)) if tensor.size() == shape => return tensor.detach(),
            Some(Entry::InFile(found)) if found == shape => match self.read(name) {
                Ok(tensor) => return tensor,
                Err(why) => self.unreadable.push(format!("{name}: {why}")),
            },
            Some(other) => self.misshapen.push(Misshapen {
                name: name.to_owned(),
                wanted: shape.to_vec(),
                found: other.shape(),
            }),
            None if self.random => {
                return Tensor::empty(shape, (Kind::Float, Device::Cpu)).normal_(0.0, 0.02);
            }
            None => self.missing.push(name.to_owned()),
        }
        Tensor::zeros(shape, (Kind::Float, Device::Cpu))
    }

    fn read(&mut self, name: &str) -> Result<Tensor, String> {
        let Reader(read) = self.reader.as_mut().ok_or("there is no file")?;
        read(name)
    }

    /// Whether `name` is there and not yet taken.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The shape of `name`, if it is there and not yet taken.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<Vec<i64>> {
        self.tensors.get(name).map(Entry::shape)
    }

    /// Names not yet taken, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// What starts with `prefix` may be left over: it belongs to a part that this model does not run.
    ///
    /// It may still be taken, by somebody else.
    pub fn ignore_prefix(&mut self, prefix: impl Into<String>) {
        self.ignored.push(prefix.into());
    }

    /// Says what was wrong.
    ///
    /// # Errors
    /// [`WeightsError`] with every missing, unexpected and misshapen name.
    pub fn finish(self) -> Result<(), WeightsError> {
        let unexpected: Vec<String> = self
            .tensors
            .into_keys()
            .filter(|name| !self.ignored.iter().any(|prefix| name.starts_with(prefix.as_str())))
            .collect();
        let error = WeightsError {
            missing: self.missing,
            unexpected,
            misshapen: self.misshapen,
            unreadable: self.unreadable,
        };
        if error == WeightsError::default() { Ok(()) } else { Err(error) }
    }

    /// A view of the names below `prefix` (which ends in a dot, or is empty) that converts what it takes.
    pub(crate) fn scope(&mut self, prefix: impl Into<String>, kind: Kind, device: Device) -> Scope<'_> {
        Scope { weights: self, prefix: prefix.into(), kind, device }
    }
}

impl fmt::Display for WeightsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the weights are not of this model")?;
        if !self.missing.is_empty() {
            write!(f, "; missing ({}): {}", self.missing.len(), self.missing.join(", "))?;
        }
        if !self.unexpected.is_empty() {
            write!(f, "; unexpected ({}): {}", self.unexpected.len(), self.unexpected.join(", "))?;
        }
        if !self.misshapen.is_empty() {
            let one = |it: &Misshapen| format!("{} is {:?}, wanted {:?}", it.name, it.found, it.wanted);
            let all: Vec<String> = self.misshapen.iter().map(one).collect();
            write!(f, "; of another shape ({}): {}", all.len(), all.join(", "))?;
        }
        if !self.unreadable.is_empty() {
            write!(f, "; unreadable ({}): {}", self.unreadable.len(), self.unreadable.join(", "))?;
        }
        Ok(())
    }
}

impl std::error::Error for WeightsError {}

/// The part of a file below one prefix, with the kind and device that the model wants.
pub(crate) struct Scope<'a> {
    weights: &'a mut Weights,
    prefix: String,
    kind: Kind,
    device: Device,
}

impl Scope<'_> {
    /// The names below `prefix.name.`.
    pub(crate) fn at(&mut self, name: impl fmt::Display) -> Scope<'_> {
        let prefix = format!("{}{name}.", self.prefix);
        Scope { weights: self.weights, prefix, kind: self.kind, device: self.device }
    }

    /// A weight of matrix products, in the wanted kind.
    pub(crate) fn take(&mut self, name: &str, shape: &[i64]) -> Tensor {
        self.weights.take(&format!("{}{name}", self.prefix), shape).to_device(self.device).to_kind(self.kind)
    }

    /// A weight that stays in single precision: norms, positions, and what is folded before it is converted.
    pub(crate) fn take_f32(&mut self, name: &str, shape: &[i64]) -> Tensor {
        self.weights
            .take(&format!("{}{name}", self.prefix), shape)
            .to_device(self.device)
            .to_kind(Kind::Float)
    }

    pub(crate) fn shape(&self, name: &str) -> Option<Vec<i64>> {
        self.weights.shape(&format!("{}{name}", self.prefix))
    }

    /// What starts with `prefix` below this scope may be left over.
    pub(crate) fn ignore(&mut self, prefix: &str) {
        let prefix = format!("{}{prefix}", self.prefix);
        self.weights.ignore_prefix(prefix);
    }

    /// Blocks `layers..` below `name` may be left over: the file is deeper than what is run.
    pub(crate) fn ignore_blocks_from(&mut self, name: &str, layers: i64) {
        let stem = format!("{}{name}.", self.prefix);
        let index = |key: &str| key.strip_prefix(&stem)?.split('.').next()?.parse::<i64>().ok();
        let surplus: std::collections::BTreeSet<i64> =
            self.weights.names().filter_map(index).filter(|index| *index >= layers).collect();
        for index in surplus {
            self.weights.ignore_prefix(format!("{stem}{index}."));
        }
    }

    /// The kind of matrix products.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(names: &[(&str, &[i64])]) -> Weights {
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
        Weights::new(names.iter().map(|(name, shape)| ((*name).to_owned(), zeros(shape))).collect())
    }

    #[test]
    fn one_error_lists_all_that_is_wrong() {
        let mut weights =
            weights(&[("a.weight", &[2, 3]), ("b.weight", &[4]), ("c", &[1]), ("d", &[1]), ("head.x", &[1])]);
        weights.ignore_prefix("head.");
        assert_eq!(weights.take("a.weight", &[2, 3]).size(), [2, 3]);
        assert_eq!(weights.take("b.weight", &[5]).size(), [5]);
        assert_eq!(weights.take("e", &[7]).size(), [7]);
        let error = weights.finish().unwrap_err();
        assert_eq!(error.missing, ["e"]);
        assert_eq!(error.unexpected, ["c", "d"]);
        let text = error.to_string();
        for part in ["missing (1): e", "unexpected (2): c, d", "b.weight is [4], wanted [5]"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("head"), "{text}");
    }

    #[test]
    fn a_file_is_read_tensor_by_tensor_and_tells_what_it_does_not_give() {
        let shapes = ["a", "b", "c"].map(|name| (name.to_owned(), vec![2]));
        let mut weights = Weights::in_file(shapes, |name| match name {
            "a" => Ok(Tensor::from_slice(&[1f32, 2.0])),
            "b" => Err("the disk is gone".into()),
            other => panic!("nobody asked for {other}"),
        });
        assert_eq!(weights.shape("a"), Some(vec![2]));
        assert_eq!(Vec::<f32>::try_from(weights.take("a", &[2])).unwrap(), [1.0, 2.0]);
        assert!(!weights.has("a"));
        assert_eq!(weights.take("b", &[2]).size(), [2]);
        assert_eq!(weights.take("c", &[3]).size(), [3]);
        let error = weights.finish().unwrap_err();
        assert_eq!(error.unreadable, ["b: the disk is gone"]);
        assert_eq!((error.misshapen[0].found.as_slice(), error.missing.len()), (&[2][..], 0));
        assert!(error.to_string().contains("unreadable (1): b: the disk is gone"), "{error}");
    }

    #[test]
    fn scopes_convert_and_surplus_blocks_may_stay() {
        let mut weights = weights(&[("m.blocks.0.w", &[2]), ("m.blocks.1.w", &[2]), ("m.blocks.10.w", &[2])]);
        let mut scope = weights.scope("m.", Kind::BFloat16, Device::Cpu);
        assert_eq!(scope.at("blocks").at(0).take("w", &[2]).kind(), Kind::BFloat16);
        scope.ignore_blocks_from("blocks", 2);
        assert_eq!(weights.finish().unwrap_err().unexpected, ["m.blocks.1.w"]);
    }
}
