//! Where the time of a run went.

use std::io::{self, Write};
use std::time::Instant;

use serde::Serialize;

use crate::session::Inner;

/// What a record is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Group(usize),
    Copy,
    Host(String),
}

struct Record {
    what: What,
    device: usize,
    start: Instant,
    end: Instant,
    work: (i64, i64),
}

/// Collects records during a run.
pub(crate) struct Recorder {
    start: Instant,
    records: Vec<Record>,
}

impl Recorder {
    pub(crate) fn new() -> Recorder {
        Recorder { start: Instant::now(), records: Vec::new() }
    }
    pub(crate) fn record(
        &mut self,
        what: What,
        device: usize,
        start: Instant,
        end: Instant,
        work: (i64, i64),
    ) {
        self.records.push(Record { what, device, start, end, work });
    }
    pub(crate) fn finish(self, inner: &Inner) -> Profile {
        let total_ns = self.start.elapsed().as_nanos() as u64;
        let plan = &inner.program.plan;
        let steps = self.records.into_iter().map(|r| {
            let (kind, group, name, loc) = match r.what {
                What::Group(g) => {
                    let group = &plan.groups[g];
                    (
                        "kernel",
                        Some(g),
                        group.name.clone(),
                        group.loc.0.as_deref().unwrap_or_default().to_string(),
                    )
                }
                What::Copy => ("copy", None, "copy".to_string(), String::new()),
                What::Host(name) => ("host", None, name, String::new()),
            };
            StepTime {
                kind,
                group,
                name,
                loc,
                device: inner.devices[r.device].name().to_string(),
                start_ns: r.start.duration_since(self.start).as_nanos() as u64,
                ns: r.end.duration_since(r.start).as_nanos() as u64,
                flops: r.work.0.max(0) as u64,
                bytes: r.work.1.max(0) as u64,
            }
        });
        Profile { steps: steps.collect(), total_ns }
    }
}

/// One launch, copy or host operation of a profiled run.
#[derive(Clone, Debug, Serialize)]
pub struct StepTime {
    /// `kernel`, `copy` or `host`.
    pub kind: &'static str,
    /// Position in the plan's groups.
    pub group: Option<usize>,
    /// Name for people.
    pub name: String,
    /// Where in the model.
    pub loc: String,
    /// Device.
    pub device: String,
    /// Nanoseconds from the start of the run.
    pub start_ns: u64,
    /// Nanoseconds it took.
    pub ns: u64,
    /// Operations, a multiply-add being 2; of a group with several launches all at the last.
    pub flops: u64,
    /// Bytes that must be read and written at least.
    pub bytes: u64,
}

/// The sum over the launches of one group.
#[derive(Clone, Debug, Serialize)]
pub struct GroupTime {
    /// `kernel`, `copy` or `host`.
    pub kind: &'static str,
    /// Name for people.
    pub name: String,
    /// Where in the model.
    pub loc: String,
    /// Launches.
    pub launches: u64,
    /// Nanoseconds.
    pub ns: u64,
    /// Share of the time of all steps, 0 to 1.
    pub share: f64,
    /// Operations.
    pub flops: u64,
    /// Bytes that must be moved at least.
    pub bytes: u64,
    /// 10⁹ operations a second.
    pub gflops: f64,
    /// 10⁹ bytes a second.
    pub gbytes: f64,
}

/// A profiled run.
#[derive(Clone, Debug, Serialize)]
pub struct Profile {
    /// Every step in order.
    pub steps: Vec<StepTime>,
    /// Nanoseconds of the whole run.
    pub total_ns: u64,
}

impl Profile {
    /// Takes over the shorter time of each step from another profile of the same plan and sizes; one of other steps is
    /// left alone.
    pub fn keep_best(&mut self, other: &Profile) {
        if self.steps.len() != other.steps.len() {
            return;
        }
        for (a, b) in self.steps.iter_mut().zip(&other.steps) {
            a.ns = a.ns.min(b.ns);
        }
        self.total_ns = self.total_ns.min(other.total_ns);
    }

    /// Sums by group, the longest first.
    pub fn groups(&self) -> Vec<GroupTime> {
        let mut index = std::collections::HashMap::new();
        let mut out: Vec<GroupTime> = Vec::new();
        for s in &self.steps {
            let key = (s.group, if s.group.is_none() { s.name.as_str() } else { "" });
            let i = *index.entry(key).or_insert_with(|| {
                out.push(GroupTime {
                    kind: s.kind,
                    name: s.name.clone(),
                    loc: s.loc.clone(),
                    launches: 0,
                    ns: 0,
                    share: 0.0,
                    flops: 0,
                    bytes: 0,
                    gflops: 0.0,
                    gbytes: 0.0,
                });
                out.len() - 1
            });
            let g = &mut out[i];
            g.launches += 1;
            g.ns += s.ns;
            g.flops += s.flops;
            g.bytes += s.bytes;
        }
        let all = out.iter().map(|g| g.ns).sum::<u64>().max(1) as f64;
        for g in &mut out {
            let ns = g.ns.max(1) as f64;
            g.share = g.ns as f64 / all;
            g.gflops = g.flops as f64 / ns;
            g.gbytes = g.bytes as f64 / ns;
        }
        out.sort_by_key(|g| std::cmp::Reverse(g.ns));
        out
    }

    /// Writes the trace in the format that Perfetto and Chrome's tracing page open.
    pub fn write_trace(&self, out: &mut impl Write) -> io::Result<()> {
        let mut devices: Vec<&str> = self.steps.iter().map(|s| s.device.as_str()).collect();
        devices.sort_unstable();
        devices.dedup();
        let thread = |s: &StepTime| devices.iter().position(|d| *d == s.device).unwrap_or(0);
        let mut events: Vec<serde_json::Value> = devices
            .iter()
            .enumerate()
            .map(|(i, d)| {
                serde_json::json!({ "ph": "M", "name": "thread_name", "pid": 1, "tid": i, "args": { "name": d } })
            })
            .collect();
        events.extend(self.steps.iter().map(|s| {
            serde_json::json!({
                "ph": "X", "cat": s.kind, "name": s.name, "pid": 1, "tid": thread(s),
                "ts": s.start_ns as f64 / 1e3, "dur": s.ns as f64 / 1e3,
                "args": {
                    "loc": s.loc,
                    "GFLOP/s": s.flops as f64 / s.ns.max(1) as f64,
                    "GB/s": s.bytes as f64 / s.ns.max(1) as f64,
                },
            })
        }));
        serde_json::to_writer(out, &serde_json::json!({ "traceEvents": events, "displayTimeUnit": "ns" }))?;
        Ok(())
    }
}
