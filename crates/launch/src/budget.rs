//! How often the set of workers is formed again. Restarts that led to a new checkpoint cost nothing: a long run on
//! machines that fail now and then must not end because of its length, one that always fails at the same step must.

use crate::Exit;

/// So many tries in a row without a new checkpoint, and another one changes nothing.
const HOPELESS: u32 = 3;

/// Restarts that are left.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    /// Restarts in a row without a new checkpoint.
    max: u32,
    spent: u32,
    /// The furthest checkpoint of any generation so far; 0 for none.
    saved: u64,
}

impl Budget {
    pub(crate) fn new(max: u32) -> Self {
        Self { max, spent: 0, saved: 0 }
    }

    /// A generation has failed whose furthest checkpoint is `saved`: how many restarts in a row another one makes, or with
    /// which exit the run ends.
    pub(crate) fn restart(&mut self, saved: u64) -> Result<u32, Exit> {
        if saved > self.saved {
            (self.saved, self.spent) = (saved, 0);
        }
        if self.spent < self.max {
            self.spent += 1;
            return Ok(self.spent);
        }
        Err(if self.spent + 1 >= HOPELESS { Exit::GiveUp } else { Exit::Unavailable })
    }

    /// The last restart did not come about, and another way is tried.
    pub(crate) fn give_back(&mut self) {
        self.spent = self.spent.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_checkpoint_gives_the_restarts_back() {
        let mut budget = Budget::new(2);
        for saved in 1..100 {
            assert_eq!(budget.restart(saved), Ok(1));
        }
        assert_eq!(budget.restart(99), Ok(2), "no later one");
        assert_eq!(budget.restart(0), Err(Exit::GiveUp), "three tries in a row gained nothing");
    }

    #[test]
    fn who_allows_few_restarts_is_told_to_try_again() {
        assert_eq!(Budget::new(0).restart(5), Err(Exit::Unavailable));
        let mut one = Budget::new(1);
        assert_eq!((one.restart(5), one.restart(5)), (Ok(1), Err(Exit::Unavailable)));
    }
}
