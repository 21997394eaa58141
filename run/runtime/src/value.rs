//! What goes into a run and comes out of it.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tongtu_plan::{Device, DeviceError, Event, Mem};
use tongtu_tensor::{DType, Tensor, TensorError};

pub use crate::host::HostValue;

/// An input or output of a run.
#[derive(Clone, Debug)]
pub enum Value {
    /// A tensor in host memory.
    Tensor(Tensor),
    /// A tensor that stays on a device between runs: state that is updated in place, or an input given often.
    Device(Arc<DeviceTensor>),
    /// Strings, a sequence or an optional.
    Host(HostValue),
}

impl From<Tensor> for Value {
    fn from(t: Tensor) -> Value {
        Value::Tensor(t)
    }
}

impl From<HostValue> for Value {
    fn from(v: HostValue) -> Value {
        match v {
            HostValue::Tensor(t) => Value::Tensor(t),
            other => Value::Host(other),
        }
    }
}

impl Value {
    /// The tensor, copied to the host if it lies on a device; `None` for other values.
    pub fn tensor(&self) -> Result<Option<Tensor>, DeviceTensorError> {
        match self {
            Value::Tensor(t) => Ok(Some(t.clone())),
            Value::Device(d) => d.read().map(Some),
            Value::Host(_) => Ok(None),
        }
    }
    /// What it is, for errors.
    pub(crate) fn kind(&self) -> String {
        match self {
            Value::Tensor(t) => format!("a {} tensor", t.dtype()),
            Value::Device(d) => format!("a {} tensor on {}", d.dtype, d.device.name()),
            Value::Host(_) => "no tensor of numbers".to_string(),
        }
    }
}

/// Why a device tensor was not made or read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DeviceTensorError {
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The host tensor could not be made.
    #[error("[R015] {0}")]
    Tensor(String),
    /// A run is using it.
    #[error("[R016] the device tensor is in use by another run")]
    Busy,
}

impl From<TensorError> for DeviceTensorError {
    fn from(e: TensorError) -> Self {
        DeviceTensorError::Tensor(e.to_string())
    }
}

/// A tensor in a device's memory that it owns. Given to a run as state, it is updated in place.
pub struct DeviceTensor {
    pub(crate) device: Arc<dyn Device>,
    pub(crate) dtype: DType,
    place: Mutex<Place>,
    /// Runs that read it, or -1: one that writes it.
    users: AtomicI64,
}

/// Where a device tensor lies and what its dims are: only a run that it is state of changes them.
struct Place {
    /// All the memory there is.
    mem: Mem,
    shape: Vec<usize>,
}

impl std::fmt::Debug for DeviceTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DeviceTensor({} {:?} on {})", self.dtype, self.shape(), self.device.name())
    }
}

impl DeviceTensor {
    /// Copies a host tensor to a device.
    pub fn new(device: Arc<dyn Device>, tensor: &Tensor) -> Result<Arc<DeviceTensor>, DeviceTensorError> {
        DeviceTensor::with_room(device, tensor, 0)
    }
    /// Copies a host tensor to a device, with memory for at least as many elements as said: state grows in it without a copy.
    pub fn with_room(
        device: Arc<dyn Device>,
        tensor: &Tensor,
        elements: usize,
    ) -> Result<Arc<DeviceTensor>, DeviceTensorError> {
        let bytes = tensor.bytes();
        let room = tensor.dtype().bytes_for(elements).unwrap_or(usize::MAX).max(bytes.len()) as u64;
        let mem = device.alloc(room)?;
        // From here on dropping it frees the memory.
        let this = DeviceTensor {
            device,
            dtype: tensor.dtype(),
            place: Mutex::new(Place { mem: Mem { bytes: room, ..mem }, shape: tensor.shape().to_vec() }),
            users: AtomicI64::new(0),
        };
        copy_in(&*this.device, Mem { bytes: bytes.len() as u64, ..mem }, &bytes)?;
        Ok(Arc::new(this))
    }
    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Its memory, of which the elements take the beginning, and how many there are.
    pub(crate) fn mem(&self) -> (Mem, u64) {
        let place = self.place();
        (place.mem, place.shape.iter().product::<usize>() as u64)
    }
    /// Number of dims.
    pub(crate) fn rank(&self) -> usize {
        self.place().shape.len()
    }
    /// One of its dims.
    pub(crate) fn dim(&self, axis: usize) -> usize {
        self.place().shape[axis]
    }
    pub(crate) fn set_shape(&self, shape: &[usize]) {
        let mut place = self.place();
        place.shape.clear();
        place.shape.extend_from_slice(shape);
    }
    /// Makes room for some bytes, by moving to memory of twice the size where there is too little; gives the bytes moved.
    pub(crate) fn reserve(&self, bytes: u64) -> Result<u64, DeviceError> {
        let mut place = self.place();
        if bytes <= place.mem.bytes {
            return Ok(0);
        }
        let room = bytes.max(place.mem.bytes.saturating_mul(2));
        let mem = Mem { bytes: room, ..self.device.alloc(room)? };
        let count = place.shape.iter().product::<usize>();
        let used = self.dtype.bytes_for(count).unwrap_or(0) as u64;
        let old = Mem { bytes: used, ..place.mem };
        let moved = self.device.copy(Mem { bytes: used, ..mem }, old, Event::DONE);
        if let Err(e) = moved.and_then(|event| self.device.wait(event)) {
            self.device.free(mem);
            return Err(e);
        }
        self.device.free(std::mem::replace(&mut place.mem, mem));
        Ok(used)
    }
    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
    /// Dims.
    pub fn shape(&self) -> Vec<usize> {
        self.place().shape.clone()
    }
    /// A copy in host memory.
    pub fn read(&self) -> Result<Tensor, DeviceTensorError> {
        if !self.acquire(false) {
            return Err(DeviceTensorError::Busy);
        }
        let read = || {
            let mut tensor = Tensor::zeros(self.dtype, &self.shape())?;
            let mem = Mem { bytes: tensor.nbytes() as u64, ..self.mem().0 };
            copy_out(&*self.device, tensor.bytes_mut(), mem)?;
            Ok(tensor)
        };
        let result = read();
        self.release(false);
        result
    }
    /// Takes part in its use; `false` if another run uses it in a way that excludes this one.
    pub(crate) fn acquire(&self, write: bool) -> bool {
        let step = |n: i64| match (write, n) {
            (true, 0) => Some(-1),
            (false, 0..) => Some(n + 1),
            _ => None,
        };
        self.users.fetch_update(Ordering::Acquire, Ordering::Relaxed, step).is_ok()
    }
    pub(crate) fn release(&self, write: bool) {
        if write {
            self.users.store(0, Ordering::Release);
        } else {
            self.users.fetch_sub(1, Ordering::Release);
        }
    }
}

impl Drop for DeviceTensor {
    fn drop(&mut self) {
        self.device.free(self.mem().0);
    }
}

/// The address of bytes, for a device.
pub(crate) fn host_mem(bytes: &[u8]) -> Mem {
    Mem { address: bytes.as_ptr().expose_provenance() as u64, bytes: bytes.len() as u64 }
}

/// The address of bytes that a device may write.
pub(crate) fn host_mem_mut(bytes: &mut [u8]) -> Mem {
    Mem { address: bytes.as_mut_ptr().expose_provenance() as u64, bytes: bytes.len() as u64 }
}

/// Copies host bytes to a device and waits for it.
pub(crate) fn copy_in(device: &dyn Device, dst: Mem, bytes: &[u8]) -> Result<(), DeviceError> {
    if bytes.is_empty() {
        return Ok(());
    }
    let event = device.copy(dst, host_mem(bytes), Event::DONE)?;
    device.wait(event)
}

/// Copies device memory to host bytes and waits for it.
pub(crate) fn copy_out(device: &dyn Device, bytes: &mut [u8], src: Mem) -> Result<(), DeviceError> {
    if bytes.is_empty() {
        return Ok(());
    }
    let event = device.copy(host_mem_mut(bytes), src, Event::DONE)?;
    device.wait(event)
}
