//! The steps of a run.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use tongtu_graph::{Loc, Type};
use tongtu_plan::{Event, LaunchArg, Mem, Storage, ValueRef};
use tongtu_tensor::{DType, Tensor, TensorError};

use crate::context::{Mode, Result, Run, bytes_of};
use crate::dims::DimId;
use crate::error::RuntimeError;
use crate::host::{self, HostValue};
use crate::pool::BlockId;
use crate::profile::What;
use crate::program::{HostStep, Kind, LArg, LBlock, LKind, LStep, Launch};
use crate::value::{Value, copy_in, copy_out, host_mem, host_mem_mut};

/// Alignment that host memory must have to be used by a device as it is.
const ALIGN: usize = 64;

impl Run<'_> {
    /// The value of an expression now.
    pub(crate) fn dim(&self, id: DimId, loc: &Loc) -> Result<i64> {
        let p = &self.inner.program;
        if let Some(Some(v)) = self.s.bindings.get(self.s.current).map(|b| b.dims[id.index()]) {
            return Ok(v);
        }
        p.dims.eval(id, &self.s.syms).map_err(|error| RuntimeError::Dim {
            loc: loc.clone(),
            dim: p.dims.expr(id).display(&p.plan.symbols).to_string(),
            error,
        })
    }

    /// Waits for all work of a device so far.
    pub(crate) fn sync(&mut self, d: usize) -> Result<(), tongtu_plan::DeviceError> {
        let last = std::mem::replace(&mut self.s.last[d], Event::DONE);
        if last == Event::DONE { Ok(()) } else { self.device(d).wait(last) }
    }

    /// Elements that a value's type gives it now.
    pub(crate) fn count(&self, v: usize, loc: &Loc) -> Result<u64> {
        let value = &self.inner.program.values[v];
        let mut count = 1u64;
        let mut empty = false;
        for &d in &value.dims {
            let n = self.dim(d, loc)?;
            let Ok(n) = u64::try_from(n) else { return Err(self.size_error(v, loc)) };
            empty |= n == 0;
            count = count.checked_mul(n.max(1)).ok_or_else(|| self.size_error(v, loc))?;
        }
        Ok(if empty { 0 } else { count })
    }

    fn bytes(&self, v: usize, count: u64, loc: &Loc) -> Result<u64> {
        let dtype = self.inner.program.values[v].dtype.unwrap_or(DType::U8);
        bytes_of(dtype, count).filter(|&b| b <= isize::MAX as u64).ok_or_else(|| self.size_error(v, loc))
    }

    /// A value's memory and number of elements.
    fn mem(&self, v: usize, loc: &Loc) -> Result<(Mem, u64)> {
        let root = self.inner.program.values[v].root;
        let slot = &self.s.slots[root];
        if !slot.ready {
            return self.defect(loc, format!("'{}' is read before anything is written to it", self.name(v)));
        }
        if root == v {
            return Ok((slot.mem, slot.count));
        }
        let count = self.count(v, loc)?;
        let bytes = self.bytes(v, count, loc)?;
        let have = slot.mem.bytes.max(slot.room);
        if bytes > have {
            let name = self.name(v);
            return self.defect(loc, format!("'{name}' needs {bytes} bytes of a value that has {have}"));
        }
        Ok((Mem { bytes, ..slot.mem }, count))
    }

    /// A value's dims now.
    fn shape(&self, v: usize, loc: &Loc) -> Result<Vec<i64>> {
        let value = &self.inner.program.values[v];
        if value.root == v && !self.s.slots[v].dims.is_empty() {
            return Ok(self.s.slots[v].dims.clone());
        }
        if let Some(HostValue::Strings { shape, .. }) = &self.s.host[value.root] {
            return Ok(shape.iter().map(|&n| n as i64).collect());
        }
        value.dims.iter().map(|&d| self.dim(d, loc)).collect()
    }

    pub(crate) fn launch_arg(&self, arg: &LArg, loc: &Loc) -> Result<LaunchArg> {
        match arg {
            LArg::Buffer(v) => self.mem(*v, loc).map(|(mem, count)| LaunchArg::Buffer(mem, count)),
            LArg::Dim(d) => self.dim(*d, loc).map(|n| LaunchArg::Scalar(n as u64)),
        }
    }

    fn alloc(&mut self, device: usize, bytes: u64, loc: &Loc) -> Result<BlockId> {
        if let Ok(block) = self.s.pool.alloc(device, bytes) {
            return Ok(block);
        }
        for d in 0..self.s.last.len() {
            self.sync(d).map_err(self.device_error(loc))?;
        }
        self.s.pool.trim();
        self.s.pool.alloc(device, bytes).map_err(self.device_error(loc))
    }

    /// Gives a root value memory of its own.
    fn give(&mut self, root: usize, count: u64, loc: &Loc) -> Result<Mem> {
        self.give_room(root, count, 0, loc)
    }

    /// As [`Run::give`], of at least so many bytes.
    fn give_room(&mut self, root: usize, count: u64, room: u64, loc: &Loc) -> Result<Mem> {
        let bytes = self.bytes(root, count, loc)?;
        // The old block goes first: it may be the one taken.
        self.drop_value(root);
        let block = self.alloc(self.inner.program.values[root].device, bytes.max(room), loc)?;
        let slot = &mut self.s.slots[root];
        slot.block = block;
        slot.room = room;
        slot.mem = Mem { bytes, ..self.s.pool.mem(block) };
        slot.count = count;
        slot.ready = true;
        Ok(slot.mem)
    }

    fn define(&mut self, root: usize, loc: &Loc) -> Result<()> {
        if self.inner.program.values[root].dtype.is_some() {
            let count = self.count(root, loc)?;
            self.give(root, count, loc)?;
        }
        Ok(())
    }

    /// A tensor value, copied to the host.
    pub(crate) fn read(&mut self, v: usize, loc: &Loc) -> Result<Tensor> {
        let value = &self.inner.program.values[v];
        let (Some(dtype), device) = (value.dtype, value.device) else {
            return self.defect(loc, format!("'{}' is not a tensor of numbers", self.name(v)));
        };
        if let Some(constant) = self.constant(v) {
            return constant.ok_or_else(|| self.size_error(v, loc))?.map_err(RuntimeError::from);
        }
        let shape = self.usize_shape(v, loc)?;
        let mut tensor = Tensor::zeros(dtype, &shape)?;
        self.read_to(v, device, &mut tensor, loc)?;
        Ok(tensor)
    }

    /// The contents of a constant, which need not be on a device; `None` for other values.
    fn constant(&self, v: usize) -> Option<Option<std::result::Result<Tensor, TensorError>>> {
        let plan = &self.inner.program.plan;
        let at = self.inner.program.values[v].root;
        let shape = |v: usize| -> Option<Vec<usize>> {
            plan.dims(ValueRef(v as u32)).iter().map(|d| usize::try_from(d.as_const()?).ok()).collect()
        };
        let whole = match &plan.values[at].storage {
            Storage::Constant(k) => Some(plan.constants[*k].clone()),
            Storage::Packed { constant, packing } => {
                shape(at).and_then(|s| packing.unpack(&plan.constants[*constant], &s))
            }
            _ => return None,
        };
        Some(whole.zip(shape(v)).map(|(t, s)| t.reshape(&s)))
    }

    fn usize_shape(&self, v: usize, loc: &Loc) -> Result<Vec<usize>> {
        let shape = self.shape(v, loc)?;
        let sizes: Option<Vec<usize>> = shape.iter().map(|&n| usize::try_from(n).ok()).collect();
        sizes.ok_or_else(|| self.size_error(v, loc))
    }

    fn read_to(&mut self, v: usize, device: usize, tensor: &mut Tensor, loc: &Loc) -> Result<()> {
        let (mem, _) = self.mem(v, loc)?;
        let bytes = tensor.bytes_mut();
        if mem.bytes != bytes.len() as u64 {
            let detail =
                format!("'{}' has {} bytes where its dims ask for {}", self.name(v), mem.bytes, bytes.len());
            return self.defect(loc, detail);
        }
        self.sync(device).map_err(self.device_error(loc))?;
        copy_out(self.device(device), bytes, mem).map_err(self.device_error(loc))
    }

    /// The first bytes of a value, at most 8, as a little-endian number.
    fn peek(&mut self, v: usize, bytes: usize, loc: &Loc) -> Result<u64> {
        let device = self.inner.program.values[v].device;
        let (mem, _) = self.mem(v, loc)?;
        if mem.bytes < bytes as u64 {
            return self.defect(loc, format!("'{}' is empty where a scalar is read", self.name(v)));
        }
        self.sync(device).map_err(self.device_error(loc))?;
        let mut buffer = [0u8; 8];
        let mem = Mem { bytes: bytes as u64, ..mem };
        copy_out(self.device(device), &mut buffer[..bytes], mem).map_err(self.device_error(loc))?;
        Ok(u64::from_le_bytes(buffer))
    }

    /// Bytes that the new contents of a state input take where it is updated in place; 0 for other inputs.
    fn room(&self, input: usize, loc: &Loc) -> Result<u64> {
        let p = &self.inner.program;
        let Some(o) = p.state[input] else { return Ok(0) };
        let (from, to) = (p.plan.inputs[input].value.index(), p.plan.outputs[o].value.index());
        if p.values[to].root != p.values[from].root {
            return Ok(0);
        }
        let count = self.count(to, loc)?;
        self.bytes(to, count, loc)
    }

    /// Makes the inputs readable by their devices.
    pub(crate) fn place_inputs(&mut self, inputs: &[Value]) -> Result<()> {
        let inner = self.inner;
        let plan = &inner.program.plan;
        let loc = Loc::default();
        for (i, (port, value)) in plan.inputs.iter().zip(inputs).enumerate() {
            let v = port.value.index();
            let device = inner.program.values[v].device;
            if inner.program.values[v].dtype.is_none() {
                let optional = matches!(plan.values[v].ty, Type::Optional(_));
                self.s.host[v] = Some(match value {
                    Value::Tensor(t) if optional => {
                        HostValue::Optional(Some(Box::new(HostValue::Tensor(t.clone()))))
                    }
                    Value::Tensor(t) => HostValue::Tensor(t.clone()),
                    Value::Host(h) => h.clone(),
                    Value::Device(d) => HostValue::Tensor(d.read().map_err(|e| {
                        RuntimeError::DeviceTensor { input: port.name.clone(), detail: e.to_string() }
                    })?),
                });
                continue;
            }
            let room = self.room(i, &loc)?;
            match value {
                Value::Tensor(t) => {
                    let bytes = t.bytes();
                    let shared = match &bytes {
                        Cow::Borrowed(b) => {
                            let aligned = b.as_ptr().addr().is_multiple_of(ALIGN);
                            aligned && inner.program.state[i].is_none() && self.device(device).host_memory()
                        }
                        Cow::Owned(_) => false,
                    };
                    if shared {
                        let slot = &mut self.s.slots[v];
                        (slot.mem, slot.count, slot.ready) = (host_mem(&bytes), t.len() as u64, true);
                    } else {
                        let mem = self.give_room(v, t.len() as u64, room, &loc)?;
                        copy_in(self.device(device), mem, &bytes).map_err(self.device_error(&loc))?;
                    }
                }
                Value::Device(t) => {
                    if !Arc::ptr_eq(&t.device, &inner.devices[device]) {
                        return Err(RuntimeError::DeviceTensor {
                            input: port.name.clone(),
                            detail: format!(
                                "it lies on {}, the model wants it on {}",
                                t.device.name(),
                                inner.devices[device].name()
                            ),
                        });
                    }
                    if room > 0 {
                        self.s.state_copied += t.reserve(room).map_err(self.device_error(&loc))?;
                    }
                    let (mem, count) = t.mem();
                    let bytes = self.bytes(v, count, &loc)?;
                    let slot = &mut self.s.slots[v];
                    (slot.mem, slot.room, slot.count) = (Mem { bytes, ..mem }, mem.bytes, count);
                    slot.ready = true;
                }
                Value::Host(_) => {}
            }
        }
        Ok(())
    }

    /// Puts the new contents of state that was not updated in place where the state is kept.
    pub(crate) fn write_back(&mut self, inputs: &[Value]) -> Result<()> {
        let inner = self.inner;
        let (p, plan) = (&inner.program, &inner.program.plan);
        let loc = Loc::default();
        for state in &plan.state {
            let (from, to) =
                (plan.outputs[state.output].value.index(), plan.inputs[state.input].value.index());
            let Value::Device(tensor) = &inputs[state.input] else { continue };
            let shape = self.usize_shape(from, &loc)?;
            if p.values[from].root != p.values[to].root {
                let (src, _) = self.mem(from, &loc)?;
                self.s.state_copied += src.bytes;
                self.s.state_copied += tensor.reserve(src.bytes).map_err(self.device_error(&loc))?;
                let dst = Mem { bytes: src.bytes, ..tensor.mem().0 };
                self.copy((from, src), (to, dst), &loc)?;
                self.sync(p.values[to].device).map_err(self.device_error(&loc))?;
            }
            tensor.set_shape(&shape);
        }
        Ok(())
    }

    /// Results that lie in the tensors given back get these now; the others of `outputs` stay as they are until the end.
    pub(crate) fn place_outputs(&mut self, outputs: &mut Vec<Value>) -> Result<()> {
        let inner = self.inner;
        let (p, plan) = (&inner.program, &inner.program.plan);
        let loc = Loc::default();
        outputs.truncate(plan.outputs.len());
        for (o, port) in plan.outputs.iter().enumerate() {
            let v = port.value.index();
            let (root, Some(dtype)) = (p.values[v].root, p.values[v].dtype) else { continue };
            if p.values[root].kind != Kind::Output {
                continue;
            }
            while outputs.len() <= o {
                outputs.push(Value::Tensor(Tensor::zeros(dtype, &[0])?));
            }
            let shape = self.usize_shape(v, &loc)?;
            let count = self.count(root, &loc)?;
            let bytes = self.bytes(root, count, &loc)?;
            let aligned =
                |t: &Tensor| matches!(t.bytes(), Cow::Borrowed(b) if b.as_ptr().addr().is_multiple_of(ALIGN));
            let fits = |t: &Tensor| t.dtype() == dtype && t.shape() == shape && aligned(t);
            if !matches!(&outputs[o], Value::Tensor(t) if fits(t)) {
                outputs[o] = Value::Tensor(Tensor::zeros(dtype, &shape)?);
            }
            let Value::Tensor(t) = &mut outputs[o] else { continue };
            let mem = host_mem_mut(t.bytes_mut());
            if mem.bytes != bytes {
                let detail =
                    format!("'{}' has {bytes} bytes where its dims ask for {}", self.name(v), mem.bytes);
                return self.defect(&loc, detail);
            }
            let slot = &mut self.s.slots[root];
            (slot.mem, slot.count, slot.ready) = (mem, count, true);
        }
        Ok(())
    }

    pub(crate) fn outputs(&mut self, inputs: &[Value], outputs: &mut Vec<Value>) -> Result<()> {
        let inner = self.inner;
        let (p, plan) = (&inner.program, &inner.program.plan);
        let loc = Loc::default();
        outputs.truncate(plan.outputs.len());
        for (o, port) in plan.outputs.iter().enumerate() {
            let v = port.value.index();
            if p.values[p.values[v].root].kind == Kind::Output {
                continue;
            }
            let kept = plan.state.iter().find(|s| s.output == o).map(|s| &inputs[s.input]);
            let result = if let Some(Value::Device(d)) = kept {
                Value::Device(d.clone())
            } else if let Some(dtype) = p.values[v].dtype {
                let shape = self.usize_shape(v, &loc)?;
                let fits =
                    |old: &Value| matches!(old, Value::Tensor(t) if t.dtype() == dtype && t.shape() == shape);
                if outputs.get(o).is_some_and(fits) {
                    if let Value::Tensor(t) = &mut outputs[o] {
                        self.read_to(v, p.values[v].device, t, &loc)?;
                    }
                    continue;
                }
                Value::Tensor(self.read(v, &loc)?)
            } else {
                match self.s.host[p.values[v].root].clone() {
                    Some(h) => Value::from(h),
                    None => return self.defect(&loc, format!("output '{}' has no value", port.name)),
                }
            };
            match outputs.get_mut(o) {
                Some(slot) => *slot = result,
                None => outputs.push(result),
            }
        }
        Ok(())
    }

    pub(crate) fn block(&mut self, block: &LBlock, mode: &mut Mode<'_>) -> Result<()> {
        let base = self.s.events.len();
        if block.crosses {
            self.s.events.resize(base + block.steps.len(), Event::DONE);
        }
        for (i, step) in block.steps.iter().enumerate() {
            for &v in &step.defines {
                self.define(v, &step.loc)?;
            }
            if block.crosses {
                for &w in &step.wait {
                    let other = block.steps[w].device;
                    let event = self.s.events[base + w];
                    if other != step.device && event != Event::DONE {
                        self.device(other).wait(event).map_err(self.device_error(&step.loc))?;
                    }
                }
            }
            let event = match &step.kind {
                LKind::Launch(l) => self.launch(*l, step, mode)?,
                _ if matches!(mode, Mode::Profile(_)) => self.timed(step, mode)?,
                _ => self.step(step, mode)?,
            };
            if event != Event::DONE {
                self.s.last[step.device] = event;
                if block.crosses {
                    self.s.events[base + i] = event;
                }
            }
            for &v in &step.drops {
                self.drop_value(v);
            }
        }
        self.s.events.truncate(base);
        Ok(())
    }

    fn launch(&mut self, index: usize, step: &LStep, mode: &mut Mode<'_>) -> Result<Event> {
        let inner = self.inner;
        let l = &inner.program.launches[index];
        let current = self.s.current;
        let ready = &mut self.s.bindings[current].ready[index];
        let mut grid = ready.grid;
        if !(l.varying.is_empty() && l.fixed_grid) {
            let mut args = std::mem::take(&mut ready.args);
            let filled = self.vary(l, &mut grid, &mut args, &step.loc);
            self.s.bindings[current].ready[index].args = args;
            filled?;
        }
        if grid.iter().any(|&g| g <= 0) {
            if grid.iter().any(|&g| g < 0) {
                for &d in &l.grid {
                    self.dim(d, &step.loc)?;
                }
                return self.defect(&step.loc, format!("a launch over the grid {grid:?}"));
            }
            if let (Mode::Verify(v), true) = (&mut *mode, l.ends.1) {
                v.skipped(self, l.group, &step.loc)?;
            }
            return Ok(Event::DONE);
        }
        let module = inner.modules[step.device][l.artifact];
        let device = self.device(step.device);
        let args = &self.s.bindings[current].ready[index].args;
        let go = |args: &[LaunchArg]| device.launch(module, l.entry, grid, args, Event::DONE);
        match mode {
            Mode::Plain => go(args).map_err(self.device_error(&step.loc)),
            Mode::Profile(_) => {
                self.sync(step.device).map_err(self.device_error(&step.loc))?;
                let args = &self.s.bindings[current].ready[index].args;
                let start = Instant::now();
                let done = go(args).and_then(|event| device.wait(event));
                let end = Instant::now();
                done.map_err(self.device_error(&step.loc))?;
                let group = &inner.program.plan.groups[l.group];
                let syms = &self.s.syms;
                let size = |d: &tongtu_tensor::Dim| {
                    d.eval(&|s| syms.get(s.0 as usize).copied().flatten()).unwrap_or(0)
                };
                // Counted once for all launches of a group.
                let work = if l.ends.1 { (size(&group.flops), size(&group.bytes)) } else { (0, 0) };
                if let Mode::Profile(r) = mode {
                    r.record(What::Group(l.group), step.device, start, end, work);
                }
                Ok(Event::DONE)
            }
            Mode::Verify(_) => {
                if let (Mode::Verify(v), true) = (&mut *mode, l.ends.0) {
                    v.before(self, l.group, &step.loc)?;
                }
                let args = &self.s.bindings[current].ready[index].args;
                let event = go(args).map_err(self.device_error(&step.loc))?;
                self.device(step.device).wait(event).map_err(self.device_error(&step.loc))?;
                if let (Mode::Verify(v), true) = (&mut *mode, l.ends.1) {
                    v.after(self, l.group, &step.loc)?;
                }
                Ok(Event::DONE)
            }
        }
    }

    /// Fills in what changes from run to run.
    fn vary(&self, l: &Launch, grid: &mut [i64; 3], args: &mut [LaunchArg], loc: &Loc) -> Result<()> {
        for &k in &l.varying {
            args[k as usize] = self.launch_arg(&l.args[k as usize], loc)?;
        }
        if !l.fixed_grid {
            for (g, &d) in grid.iter_mut().zip(&l.grid) {
                *g = self.dim(d, loc)?;
            }
        }
        Ok(())
    }

    /// A step that is no launch, with its time.
    fn timed(&mut self, step: &LStep, mode: &mut Mode<'_>) -> Result<Event> {
        let what = match &step.kind {
            LKind::Copy(..) => What::Copy,
            LKind::Host(h) => What::Host(h.name.clone()),
            // Blocks time their own steps; the rest is too short to matter.
            _ => return self.step(step, mode),
        };
        self.sync(step.device).map_err(self.device_error(&step.loc))?;
        let start = Instant::now();
        let event = self.step(step, mode)?;
        self.device(step.device).wait(event).map_err(self.device_error(&step.loc))?;
        if let Mode::Profile(r) = mode {
            r.record(what, step.device, start, Instant::now(), (0, 0));
        }
        Ok(Event::DONE)
    }

    fn step(&mut self, step: &LStep, mode: &mut Mode<'_>) -> Result<Event> {
        let inner = self.inner;
        let p = &inner.program;
        let loc = &step.loc;
        if let Mode::Verify(verifier) = mode {
            match &step.kind {
                LKind::Copy(_, dst) | LKind::Assign(_, dst) | LKind::WriteDim(dst, _) => {
                    verifier.touched(p.values[*dst].root);
                }
                LKind::Host(h) => h.outputs.iter().for_each(|v| verifier.touched(*v)),
                _ => {}
            }
        }
        match &step.kind {
            LKind::Launch(l) => return self.launch(*l, step, mode),
            LKind::Copy(src, dst) => {
                if p.values[*src].dtype.is_none() {
                    self.s.host[p.values[*dst].root] = self.s.host[p.values[*src].root].clone();
                    return Ok(Event::DONE);
                }
                let ((from, _), (to, _)) = (self.mem(*src, loc)?, self.mem(*dst, loc)?);
                if from.bytes != to.bytes {
                    let detail = format!(
                        "'{}' with {} bytes is copied to '{}' with {}",
                        self.name(*src),
                        from.bytes,
                        self.name(*dst),
                        to.bytes
                    );
                    return self.defect(loc, detail);
                }
                return self.copy((*src, from), (*dst, to), loc);
            }
            LKind::Assign(src, dst) => self.assign(*src, *dst, loc)?,
            LKind::WriteDim(dst, dim) => {
                let value = self.dim(*dim, loc)?;
                let (mem, _) = self.mem(*dst, loc)?;
                if mem.bytes < 8 {
                    return self.defect(loc, "a size is written where there is no room for it");
                }
                let device = p.values[*dst].device;
                self.sync(device).map_err(self.device_error(loc))?;
                let mem = Mem { bytes: 8, ..mem };
                copy_in(self.device(device), mem, &value.to_le_bytes()).map_err(self.device_error(loc))?;
            }
            LKind::Bind(sym, src) => {
                let value = self.peek(*src, 8, loc)? as i64;
                self.bind_symbol(*sym, value, || loc.to_string())?;
            }
            LKind::BindDims(value, fresh) => self.bind_dims(*value, fresh, loc)?,
            LKind::Guard(lhs, rhs, message) => {
                let (a, b) = (self.dim(*lhs, loc)?, self.dim(*rhs, loc)?);
                if a != b {
                    let text = |d: DimId| p.dims.expr(d).display(&p.plan.symbols).to_string();
                    return Err(RuntimeError::Guard {
                        loc: loc.clone(),
                        message: message.clone(),
                        lhs: text(*lhs),
                        lhs_value: a,
                        rhs: text(*rhs),
                        rhs_value: b,
                    });
                }
            }
            LKind::If(condition, then_block, else_block) => {
                let taken = self.peek(*condition, 1, loc)? & 0xff != 0;
                self.block(if taken { then_block } else { else_block }, mode)?;
            }
            LKind::While(condition, body) => {
                while self.peek(*condition, 1, loc)? & 0xff != 0 {
                    self.block(body, mode)?;
                }
            }
            LKind::Host(h) => self.host_step(h, loc)?,
        }
        Ok(Event::DONE)
    }

    /// Copies memory of equal size from one value to another; gives the event of the destination's device.
    fn copy(&mut self, (src, from): (usize, Mem), (dst, to): (usize, Mem), loc: &Loc) -> Result<Event> {
        let p = &self.inner.program;
        if from.bytes == 0 {
            return Ok(Event::DONE);
        }
        let (a, b) = (p.values[src].device, p.values[dst].device);
        if a == b {
            return self.device(b).copy(to, from, Event::DONE).map_err(self.device_error(loc));
        }
        // The memory may be reused as soon as the next step of either device runs, so the copy is waited for.
        self.sync(a).map_err(self.device_error(loc))?;
        self.sync(b).map_err(self.device_error(loc))?;
        if self.device(a).host_memory() {
            let event = self.device(b).copy(to, from, Event::DONE).map_err(self.device_error(loc))?;
            self.device(b).wait(event).map_err(self.device_error(loc))?;
        } else if self.device(b).host_memory() {
            let event = self.device(a).copy(to, from, Event::DONE).map_err(self.device_error(loc))?;
            self.device(a).wait(event).map_err(self.device_error(loc))?;
        } else {
            let mut staging = Tensor::zeros(DType::U8, &[from.bytes as usize])?;
            copy_out(self.device(a), staging.bytes_mut(), from).map_err(self.device_error(loc))?;
            copy_in(self.device(b), to, &staging.bytes()).map_err(self.device_error(loc))?;
        }
        Ok(Event::DONE)
    }

    /// Another name for contents and dims; what cannot be shared is copied.
    fn assign(&mut self, src: usize, dst: usize, loc: &Loc) -> Result<()> {
        let p = &self.inner.program;
        let root = p.values[src].root;
        if p.values[src].dtype.is_none() {
            let value = self.s.host[root].clone();
            if value.is_none() {
                return self
                    .defect(loc, format!("'{}' is read before anything is written to it", self.name(src)));
            }
            self.s.host[dst] = value;
            return Ok(());
        }
        let dims = self.shape(src, loc)?;
        let (from, count) = self.mem(src, loc)?;
        if root == dst {
            self.s.slots[dst].dims = dims;
            return Ok(());
        }
        let lent = matches!(p.values[src].kind, Kind::Arena | Kind::Output);
        let shared = !lent && p.values[src].device == p.values[dst].device;
        if shared {
            let block = self.s.slots[root].block;
            self.s.pool.share(block);
            self.drop_value(dst);
            let slot = &mut self.s.slots[dst];
            (slot.mem, slot.count, slot.block, slot.ready) = (from, count, block, true);
        } else {
            let to = self.give(dst, count, loc)?;
            let event = self.copy((src, from), (dst, to), loc)?;
            let device = p.values[dst].device;
            if event != Event::DONE {
                self.s.last[device] = event;
            }
        }
        self.s.slots[dst].dims = dims;
        Ok(())
    }

    fn bind_dims(&mut self, v: usize, fresh: &[tongtu_tensor::Sym], loc: &Loc) -> Result<()> {
        let inner = self.inner;
        let p = &inner.program;
        let actual = self.shape(v, loc)?;
        let value = &p.values[v];
        if actual.len() != value.dims.len() {
            let detail =
                format!("'{}' has {} dims, {} were expected", self.name(v), actual.len(), value.dims.len());
            return self.defect(loc, detail);
        }
        for s in fresh {
            self.s.syms[s.0 as usize] = None;
        }
        for (&id, &n) in value.dims.iter().zip(&actual) {
            if let Some(s) = p.dims.expr(id).as_sym().filter(|s| fresh.contains(s))
                && self.s.syms[s.0 as usize].is_none()
            {
                self.bind_symbol(s, n, || loc.to_string())?;
            }
        }
        for (axis, (&id, &n)) in value.dims.iter().zip(&actual).enumerate() {
            let want = self.dim(id, loc)?;
            if want != n {
                return Err(RuntimeError::Guard {
                    loc: loc.clone(),
                    message: format!(
                        "dim {axis} of '{}' has another size than the model promises",
                        self.name(v)
                    ),
                    lhs: p.dims.expr(id).display(&p.plan.symbols).to_string(),
                    lhs_value: want,
                    rhs: "the actual size".to_string(),
                    rhs_value: n,
                });
            }
        }
        Ok(())
    }

    fn host_step(&mut self, h: &HostStep, loc: &Loc) -> Result<()> {
        let p = &self.inner.program;
        let mut inputs = Vec::with_capacity(h.inputs.len());
        for &v in &h.inputs {
            inputs.push(match (&self.s.host[p.values[v].root], p.values[v].dtype) {
                (Some(value), None) => value.clone(),
                (None, None) => {
                    return self
                        .defect(loc, format!("'{}' is read before anything is written to it", self.name(v)));
                }
                (_, Some(_)) => HostValue::Tensor(self.read(v, loc)?),
            });
        }
        let fail = |detail: String| RuntimeError::Host { op: h.name.clone(), loc: loc.clone(), detail };
        let results =
            host::call(&h.name, &h.attributes, &h.results, &inputs).map_err(|e| fail(e.to_string()))?;
        if results.len() != h.outputs.len() {
            return Err(fail(format!("gave {} results, {} are used", results.len(), h.outputs.len())));
        }
        for (index, (&v, result)) in h.outputs.iter().zip(results).enumerate() {
            let value = &p.values[v];
            let Some(expected) = value.dtype else {
                self.s.host[v] = Some(result);
                continue;
            };
            let wrong = |found: String| RuntimeError::ResultType {
                op: h.name.clone(),
                loc: loc.clone(),
                index,
                expected,
                found,
            };
            let HostValue::Tensor(t) = result else { return Err(wrong("no tensor of numbers".to_string())) };
            if t.dtype() != expected || t.rank() != value.dims.len() {
                return Err(wrong(format!("a {} tensor of rank {}", t.dtype(), t.rank())));
            }
            let mem = if matches!(value.kind, Kind::Pool | Kind::Host) {
                self.give(v, t.len() as u64, loc)?
            } else {
                self.mem(v, loc)?.0
            };
            if mem.bytes != t.nbytes() as u64 {
                return Err(wrong(format!("a tensor of shape {:?}", t.shape())));
            }
            self.sync(value.device).map_err(self.device_error(loc))?;
            copy_in(self.device(value.device), mem, &t.bytes()).map_err(self.device_error(loc))?;
            let slot = &mut self.s.slots[v];
            slot.dims.clear();
            slot.dims.extend(t.shape().iter().map(|&n| n as i64));
        }
        Ok(())
    }
}
