//! A terminal for a worker whose launcher sits at one: its bars are drawn, and its log is written too.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

/// A longer line is written in parts, so that one without an end costs no memory.
const MAX_LINE: usize = 8 * 1024;

/// Our end of a new terminal as large as `ours`, and the worker's.
pub(crate) fn terminal_like(ours: &impl AsFd) -> io::Result<(File, OwnedFd)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let path = ptsname(&master, Vec::new())?;
    let worker = open(path, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    // What is written there comes out as it is; line ends are for our own terminal to set.
    let mut attributes = tcgetattr(&worker)?;
    attributes.make_raw();
    tcsetattr(&worker, OptionalActions::Now, &attributes)?;
    tcsetwinsize(&worker, tcgetwinsize(ours)?)?;
    Ok((File::from(master), worker))
}

/// Writes what stays on a terminal: whole lines without colours, and of a bar that is drawn again and again nothing.
#[derive(Debug)]
pub(crate) struct Plain<W: Write> {
    out: W,
    line: Vec<u8>,
    escape: Escape,
    /// After a carriage return the next letter begins the line anew.
    returned: bool,
}

/// Where in a control sequence the last byte was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Escape {
    None,
    Begun,
    /// Between `ESC [` and its final letter; the parameter so far, as far as it matters.
    Control(u8),
}

impl<W: Write> Plain<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, line: Vec::new(), escape: Escape::None, returned: false }
    }

    fn take(&mut self, byte: u8) -> io::Result<()> {
        match (self.escape, byte) {
            (Escape::None, 0x1b) => self.escape = Escape::Begun,
            (Escape::None, b'\r') => self.returned = true,
            (Escape::None, b'\n') => self.end_line(b"\n")?,
            (Escape::None, _) => {
                if std::mem::take(&mut self.returned) {
                    self.line.clear();
                }
                self.line.push(byte);
                if self.line.len() >= MAX_LINE {
                    self.end_line(b"")?;
                }
            }
            (Escape::Begun, b'[') => self.escape = Escape::Control(0),
            (Escape::Begun, _) => self.escape = Escape::None,
            (Escape::Control(parameter), 0x40..=0x7e) => {
                // Erases the whole line.
                if (parameter, byte) == (b'2', b'K') {
                    self.line.clear();
                }
                self.escape = Escape::None;
            }
            (Escape::Control(_), _) => self.escape = Escape::Control(byte),
        }
        Ok(())
    }

    fn end_line(&mut self, end: &[u8]) -> io::Result<()> {
        self.returned = false;
        let line = std::mem::take(&mut self.line);
        self.out.write_all(&line)?;
        self.out.write_all(end)
    }
}

impl<W: Write> Write for Plain<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        bytes.iter().try_for_each(|byte| self.take(*byte))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The last line may have no end.
impl<W: Write> Drop for Plain<W> {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            let _ = self.end_line(b"\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn plain(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        Plain::new(&mut out).write_all(bytes).unwrap();
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn bars_leave_nothing_and_lines_stay() {
        let drawn = "\r\u{1b}[2K\u{1b}[36mstage1 ━━╸─ 3/9\u{1b}[0m\r\u{1b}[2Kstep 3\n\rstage1 ━━━╸ 4/9\rstage1 ━━━━ 5/9";
        assert_eq!(plain(drawn.as_bytes()), "step 3\nstage1 ━━━━ 5/9\n");
        assert_eq!(plain(b"\x1b[31mred\x1b[0m\r\nno end"), "red\nno end\n");
        assert_eq!(plain(b"bar\r\x1b[2K"), "");
    }

    #[test]
    fn a_line_without_an_end_costs_no_memory() {
        let mut plain = Plain::new(io::sink());
        for _ in 0..1000 {
            plain.write_all(&[b'x'; 1000]).unwrap();
        }
        assert!(plain.line.capacity() <= 2 * MAX_LINE);
    }

    proptest! {
        #[test]
        fn text_comes_through_whole_and_no_bytes_make_it_panic(
            text in "[a-z ,\n]{0,200}",
            noise in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let whole = format!("{text}\n");
            prop_assert_eq!(plain(whole.as_bytes()), whole);
            let said = plain(&noise);
            prop_assert!(!said.contains('\u{1b}'), "{}", said);
        }
    }
}
