//! Tensors on their way to the device, one ahead of what it computes on.

use tch::{Device, Tensor};

/// A tensor on its way. Closed: it is copied beside what the device computes, or there is nothing to wait for.
pub enum Upload {
    /// On the device.
    Here(Tensor),
    /// Under way to a CUDA device.
    UnderWay(torch_bridge::Upload),
}

impl Upload {
    /// Begins to copy `host` to `device`.
    #[must_use]
    pub fn start(host: &Tensor, device: Device) -> Self {
        match device {
            Device::Cuda(index) => Self::UnderWay(torch_bridge::Upload::start(host, index)),
            _ => Self::Here(host.to_device(device)),
        }
    }

    /// The tensor on the device, for whatever is asked of the device after this.
    pub fn finish(self) -> Tensor {
        match self {
            Self::Here(tensor) => tensor,
            Self::UnderWay(upload) => upload.finish(),
        }
    }
}

/// What a source gives, with the next item made before it is asked for.
pub struct Ahead<T, E> {
    coming: Option<Result<T, E>>,
}

impl<T, E> Default for Ahead<T, E> {
    fn default() -> Self {
        Self { coming: None }
    }
}

impl<T, E> Ahead<T, E> {
    /// The next item of `make`. With `more` the one behind it is made too; what fails there is told when its turn comes.
    ///
    /// # Errors
    /// What `make` said of this item.
    pub fn next(&mut self, more: bool, mut make: impl FnMut() -> Result<T, E>) -> Result<T, E> {
        let item = self.coming.take().unwrap_or_else(&mut make)?;
        if more {
            self.coming = Some(make());
        }
        Ok(item)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a failed test")]
mod tests {
    use super::*;

    /// Gives 0, 1, 2, and then fails.
    fn source() -> impl FnMut() -> Result<u32, &'static str> {
        let mut items = 0..3;
        move || items.next().ok_or("the end")
    }

    #[test]
    fn items_come_in_order_and_one_is_made_ahead() {
        let (mut ahead, mut make) = (Ahead::default(), source());
        let mut made = 0;
        for item in 0..2 {
            let next = ahead.next(true, || {
                made += 1;
                make()
            });
            assert_eq!((next.unwrap(), made), (item, item + 2));
        }
    }

    #[test]
    fn behind_the_last_item_nothing_is_made() {
        let (mut ahead, mut make) = (Ahead::default(), source());
        assert_eq!(ahead.next(true, &mut make).unwrap(), 0);
        assert_eq!(ahead.next(false, || -> Result<u32, &str> { panic!("nobody needs it") }).unwrap(), 1);
        assert_eq!(ahead.next(false, &mut make).unwrap(), 2, "and a source that goes on is not left behind");
    }

    #[test]
    fn an_end_is_told_when_its_turn_comes() {
        let (mut ahead, mut make) = (Ahead::default(), source());
        let items: Vec<_> = (0..4).map(|_| ahead.next(true, &mut make)).collect();
        assert_eq!(items, [Ok(0), Ok(1), Ok(2), Err("the end")]);
    }

    #[test]
    fn a_device_that_shares_the_hosts_memory_has_it_at_once() {
        let host = Tensor::from_slice(&[1.0f32, 2.0]);
        assert_eq!(Upload::start(&host, Device::Cpu).finish(), host);
    }
}
