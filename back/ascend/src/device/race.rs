//! A happens-before check of the synchronisation inside a vector core: which operations of its pipes are ordered.

use std::collections::{HashMap, VecDeque};

/// Pipes: scalar, vector, three movers, matrix, results.
pub const PIPES: usize = 7;

/// The number of a pipe by its name; `PIPE_ALL` is the number of pipes.
pub fn pipe(name: &str) -> usize {
    match name {
        "PIPE_S" => 0,
        "PIPE_V" => 1,
        "PIPE_MTE1" => 2,
        "PIPE_MTE2" => 3,
        "PIPE_MTE3" => 4,
        "PIPE_M" => 5,
        "PIPE_FIX" => 6,
        _ => PIPES,
    }
}

type Clock = [u64; PIPES];

struct Access {
    pipe: usize,
    number: u64,
    write: bool,
    from: i64,
    to: i64,
}

/// What each pipe has done and knows of the others.
#[derive(Default)]
pub struct Pipes {
    /// Whether accesses are recorded.
    pub check: bool,
    /// Whether the vector pipe's operations take effect in their order.
    pub in_order: bool,
    /// Inside a vector function, whose accesses are one operation.
    pub inside: bool,
    done: Clock,
    known: [Clock; PIPES],
    flags: HashMap<(usize, usize, i64), VecDeque<Clock>>,
    log: VecDeque<Access>,
    /// The last operation of each pipe in the log.
    latest: Clock,
    /// Descriptions of races found.
    pub races: Vec<String>,
}

/// Accesses remembered.
const WINDOW: usize = 2048;
/// Races described.
const MOST: usize = 16;

impl Pipes {
    /// Pipes that have done nothing.
    pub fn new(check: bool, in_order: bool) -> Pipes {
        Pipes { check, in_order, ..Pipes::default() }
    }

    /// An operation of a pipe begins.
    pub fn start(&mut self, pipe: usize) {
        if self.inside {
            return;
        }
        if self.in_order && pipe == 1 {
            self.known[1][1] = self.done[1];
        }
        self.done[pipe] += 1;
        // The scalar unit issues what the others do.
        if pipe == 0 {
            let now = self.done[0];
            self.known.iter_mut().for_each(|k| k[0] = now);
        }
    }

    /// One pipe tells another.
    pub fn set(&mut self, from: usize, to: usize, event: i64) {
        let mut clock = self.known[from];
        clock[from] = self.done[from];
        self.flags.entry((from, to, event)).or_default().push_back(clock);
    }

    /// One pipe waits for another; false if nothing was told.
    pub fn wait(&mut self, from: usize, to: usize, event: i64) -> bool {
        let Some(clock) = self.flags.get_mut(&(from, to, event)).and_then(VecDeque::pop_front) else {
            return false;
        };
        let merge = |k: &mut Clock| k.iter_mut().zip(&clock).for_each(|(a, b)| *a = (*a).max(*b));
        merge(&mut self.known[to]);
        if to == 0 {
            self.known.iter_mut().for_each(merge);
        }
        true
    }

    /// A pipe, or all, waits for what it has begun.
    pub fn barrier(&mut self, pipe: usize) {
        if pipe < PIPES {
            self.known[pipe][pipe] = self.done[pipe];
            return;
        }
        self.known = [self.done; PIPES];
        self.log.clear();
    }

    /// The current operation of a pipe reads or writes bytes.
    pub fn access(&mut self, pipe: usize, write: bool, from: i64, to: i64) {
        if !self.check || pipe >= PIPES {
            return;
        }
        let pipe = if self.inside { 1 } else { pipe };
        let number = self.done[pipe];
        let (known, races) = (&self.known[pipe], &mut self.races);
        // Where all that was done is known of there is nothing to look for.
        let open = |p: usize| self.latest[p] > known[p] && (p != pipe || number - 1 > known[p]);
        if !(0..PIPES).any(open) {
            return self.note(Access { pipe, number, write, from, to });
        }
        self.log.retain(|a| {
            let one = a.pipe == pipe && a.number == number;
            let apart = a.from >= to || from >= a.to;
            if !one && !apart && (write || a.write) && a.number > known[a.pipe] && races.len() < MOST {
                let what = |w: bool| if w { "writes" } else { "reads" };
                races.push(format!(
                    "pipe {pipe} {} bytes {from} to {to} while pipe {} {} {} to {}",
                    what(write),
                    a.pipe,
                    what(a.write),
                    a.from,
                    a.to
                ));
            }
            // What is ordered after this is ordered after what it covers.
            !(a.pipe == pipe && a.write == write && a.from >= from && a.to <= to)
        });
        self.note(Access { pipe, number, write, from, to });
    }

    fn note(&mut self, new: Access) {
        // All know of what the scalar unit does.
        if new.pipe == 0 {
            return;
        }
        self.latest[new.pipe] = new.number;
        match self.log.back_mut() {
            Some(a) if (a.pipe, a.number, a.write, a.to) == (new.pipe, new.number, new.write, new.from) => {
                a.to = new.to;
            }
            _ => self.log.push_back(new),
        }
        if self.log.len() > WINDOW {
            // What all pipes know of is ordered before what comes.
            let known = &self.known;
            self.log.retain(|a| known.iter().any(|k| a.number > k[a.pipe]));
            while self.log.len() > WINDOW {
                self.log.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two(sync: bool) -> usize {
        let mut p = Pipes { check: true, ..Pipes::default() };
        p.start(3);
        p.access(3, true, 0, 64);
        if sync {
            p.set(3, 1, 0);
            assert!(p.wait(3, 1, 0));
        }
        p.start(1);
        p.access(1, false, 32, 96);
        p.races.len()
    }

    #[test]
    fn an_order_that_is_missing_is_found() {
        assert_eq!((two(true), two(false)), (0, 1));
        assert!(!Pipes::default().wait(0, 1, 0));
    }
}
