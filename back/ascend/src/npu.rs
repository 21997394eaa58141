//! A machine that has the chip: kernels through the C interface of the vendor's runtime, which is opened when it is asked for.
//!
//! Written from the interface's public description and not run yet: there has been no such machine.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tongtu_chip::Chip;
use tongtu_plan::backend::{Artifact, CompileError, Device, DeviceError, Event, LaunchArg, Mem};

use crate::Tool;

type Ptr = *mut c_void;

/// Declares the functions taken from the runtime's library.
macro_rules! functions {
    ($($name:ident: fn($($arg:ty),*);)*) => {
        #[derive(Clone, Copy)]
        #[allow(non_snake_case)]
        struct Functions { $($name: unsafe extern "C" fn($($arg),*) -> c_int,)* }

        impl Functions {
            fn of(library: Ptr) -> Result<Functions, String> {
                Ok(Functions { $($name: {
                    let name = concat!(stringify!($name), "\0");
                    // SAFETY: the library is open and the name ends in zero.
                    let found = unsafe { libc::dlsym(library, name.as_ptr().cast()) };
                    if found.is_null() {
                        return Err(format!("the runtime has no function {}", stringify!($name)));
                    }
                    // SAFETY: the runtime documents the function under this name with these parameters.
                    unsafe { std::mem::transmute::<Ptr, unsafe extern "C" fn($($arg),*) -> c_int>(found) }
                },)* })
            }
        }
    };
}

functions! {
    aclInit: fn(*const c_char);
    aclrtSetDevice: fn(i32);
    aclrtCreateStream: fn(*mut Ptr);
    aclrtSynchronizeStream: fn(Ptr);
    aclrtMalloc: fn(*mut Ptr, usize, c_int);
    aclrtFree: fn(Ptr);
    aclrtMemcpy: fn(Ptr, usize, *const c_void, usize, c_int);
    aclrtBinaryLoadFromFile: fn(*const c_char, Ptr, *mut Ptr);
    aclrtBinaryGetFunction: fn(Ptr, *const c_char, *mut Ptr);
    aclrtGetHardwareSyncAddr: fn(*mut Ptr);
    aclrtLaunchKernelWithHostArgs: fn(Ptr, u32, Ptr, Ptr, Ptr, usize, Ptr, usize);
}

struct Kernel {
    function: usize,
    name: String,
    /// Bytes of workspace of an instance.
    workspace: u64,
    /// Bytes of each scalar parameter.
    widths: Vec<usize>,
}

/// Bytes of each scalar parameter of a kernel's text.
fn widths(text: &str) -> Vec<usize> {
    let head = text.split("%len").next().unwrap_or("").split("%gx").next().unwrap_or("");
    let types = head.split(", ").filter_map(|p| p.trim_start_matches('(').split_once(": "));
    let own = types.filter(|(name, ty)| name.starts_with("%p") && !ty.starts_with("memref"));
    let bits =
        |ty: &str| ty.chars().filter(char::is_ascii_digit).collect::<String>().parse().unwrap_or(64usize);
    own.map(|(_, ty)| bits(ty.trim_end_matches([',', ' '])).div_ceil(8)).collect()
}

/// The first chip of this machine.
pub struct Npu {
    name: String,
    chip: Chip,
    f: Functions,
    stream: usize,
    sync: u64,
    memory: Mutex<BTreeMap<u64, u64>>,
    kernels: Mutex<Vec<Arc<Vec<Kernel>>>>,
}

fn check(code: c_int, what: &str) -> Result<(), String> {
    if code == 0 { Ok(()) } else { Err(format!("{what} failed with code {code}")) }
}

impl Npu {
    /// Opens the runtime and the machine's first chip.
    ///
    /// # Errors
    /// [`DeviceError::Lost`] with what is missing.
    pub fn open(chip: &Chip) -> Result<Npu, DeviceError> {
        let name = chip.title.clone();
        let lost = |detail: String| DeviceError::Lost { device: name.clone(), detail };
        let mut places = vec![PathBuf::from("libascendcl.so")];
        let home = std::env::var_os("ASCEND_HOME_PATH").map(PathBuf::from);
        places.extend(
            home.iter()
                .flat_map(|h| [h.join("lib64/libascendcl.so"), h.join("runtime/lib64/libascendcl.so")]),
        );
        let open = |p: &PathBuf| {
            let path = CString::new(p.to_string_lossy().as_bytes()).ok()?;
            // SAFETY: the path ends in zero; loading the runtime runs its own initialisers only.
            let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
            (!library.is_null()).then_some(library)
        };
        let library = places.iter().find_map(open).ok_or_else(|| {
            // SAFETY: dlerror gives a string that ends in zero, or nothing.
            let why = unsafe { libc::dlerror() };
            let why = if why.is_null() {
                String::new()
            } else {
                // SAFETY: as above; it is copied before the next call.
                unsafe { CStr::from_ptr(why) }.to_string_lossy().into_owned()
            };
            lost(format!("the CANN runtime is not installed ({why}); install CANN, or run with --simulate"))
        })?;
        let f = Functions::of(library).map_err(&lost)?;
        let (mut stream, mut sync): (Ptr, Ptr) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the functions are called as documented, with pointers to live variables.
        let steps = unsafe {
            check((f.aclInit)(std::ptr::null()), "aclInit")
                .and_then(|()| check((f.aclrtSetDevice)(0), "aclrtSetDevice"))
                .and_then(|()| check((f.aclrtCreateStream)(&mut stream), "aclrtCreateStream"))
                .and_then(|()| check((f.aclrtGetHardwareSyncAddr)(&mut sync), "aclrtGetHardwareSyncAddr"))
        };
        steps.map_err(&lost)?;
        Ok(Npu {
            name,
            chip: chip.clone(),
            f,
            stream: stream as usize,
            sync: sync as u64,
            memory: Mutex::new(BTreeMap::new()),
            kernels: Mutex::new(Vec::new()),
        })
    }

    fn lost(&self, detail: String) -> DeviceError {
        DeviceError::Lost { device: self.name.clone(), detail }
    }

    fn synchronise(&self) -> Result<(), DeviceError> {
        // SAFETY: the stream was made by this runtime and is not destroyed.
        let code = unsafe { (self.f.aclrtSynchronizeStream)(self.stream as Ptr) };
        check(code, "aclrtSynchronizeStream").map_err(|e| self.lost(e))
    }

    fn is_own(&self, address: u64) -> bool {
        let memory = self.memory.lock().unwrap_or_else(|e| e.into_inner());
        memory.range(..=address).next_back().is_some_and(|(at, n)| address < at + n)
    }
}

/// The argument block of a launch: addresses and 64-bit numbers at multiples of 8 bytes, 32-bit ones at multiples of 4.
pub(crate) fn block(
    sync: u64,
    workspace: u64,
    args: &[LaunchArg],
    widths: &[usize],
    grid: [i64; 3],
) -> Vec<u8> {
    let mut out = Vec::new();
    let mut put = |value: u64, bytes: usize| {
        out.resize(out.len().next_multiple_of(bytes), 0);
        out.extend_from_slice(&value.to_le_bytes()[..bytes]);
    };
    put(sync, 8);
    put(0, 8);
    put(workspace, 8);
    let mut widths = widths.iter();
    for a in args {
        match a {
            LaunchArg::Buffer(m, _) => put(m.address, 8),
            LaunchArg::Scalar(bits) => put(*bits, widths.next().copied().unwrap_or(8)),
        }
    }
    for a in args {
        if let LaunchArg::Buffer(_, len) = a {
            put(*len, 8);
        }
    }
    grid.iter().for_each(|&n| put(n as u64, 4));
    out
}

impl Device for Npu {
    fn name(&self) -> &str {
        &self.name
    }

    fn alloc(&self, bytes: u64) -> Result<Mem, DeviceError> {
        let mut at: Ptr = std::ptr::null_mut();
        // SAFETY: `at` is a live variable; the size is at least 1.
        let code = unsafe { (self.f.aclrtMalloc)(&mut at, bytes.max(64) as usize, 0) };
        if code != 0 || at.is_null() {
            return Err(DeviceError::Memory { device: self.name.clone(), bytes });
        }
        let address = at as u64;
        self.memory.lock().unwrap_or_else(|e| e.into_inner()).insert(address, bytes.max(64));
        Ok(Mem { address, bytes })
    }

    fn free(&self, mem: Mem) {
        self.memory.lock().unwrap_or_else(|e| e.into_inner()).remove(&mem.address);
        // SAFETY: by the device's contract the memory came from `alloc` and nothing uses it.
        unsafe { (self.f.aclrtFree)(mem.address as Ptr) };
    }

    fn load(&self, artifact: &Artifact) -> Result<u64, DeviceError> {
        let bad = |detail: String| DeviceError::Artifact { device: self.name.clone(), detail };
        let (chip, parts) =
            crate::artifact::read(&artifact.bytes).ok_or_else(|| bad("it is damaged".to_string()))?;
        if artifact.backend != crate::NAME || chip != self.chip.name {
            return Err(bad(format!("it was made for {chip}")));
        }
        let tool = Tool::find(&self.chip).map_err(|e: CompileError| bad(e.to_string()))?;
        let mut kernels = Vec::new();
        for (part, entry) in parts.iter().zip(&artifact.entries) {
            let object = tool.object(&part.text, &self.chip).map_err(|e| bad(e.to_string()))?;
            let workspace = crate::device::workspace(&part.planned).map_err(&bad)?;
            let path = CString::new(object.to_string_lossy().as_bytes()).map_err(|e| bad(e.to_string()))?;
            let symbol = crate::emit::symbol(&entry.name);
            let name = CString::new(symbol.as_str()).map_err(|e| bad(e.to_string()))?;
            let (mut binary, mut function): (Ptr, Ptr) = (std::ptr::null_mut(), std::ptr::null_mut());
            // SAFETY: both strings end in zero and the pointers are to live variables.
            let steps = unsafe {
                check(
                    (self.f.aclrtBinaryLoadFromFile)(path.as_ptr(), std::ptr::null_mut(), &mut binary),
                    "aclrtBinaryLoadFromFile",
                )
                .and_then(|()| {
                    check(
                        (self.f.aclrtBinaryGetFunction)(binary, name.as_ptr(), &mut function),
                        "aclrtBinaryGetFunction",
                    )
                })
            };
            let _ = std::fs::remove_file(&object);
            steps.map_err(&bad)?;
            let widths = widths(&part.text);
            kernels.push(Kernel { function: function as usize, name: symbol, workspace, widths });
        }
        let mut all = self.kernels.lock().unwrap_or_else(|e| e.into_inner());
        all.push(Arc::new(kernels));
        Ok(all.len() as u64 - 1)
    }

    fn launch(
        &self,
        module: u64,
        entry: usize,
        grid: [i64; 3],
        args: &[LaunchArg],
        _: Event,
    ) -> Result<Event, DeviceError> {
        let found = self.kernels.lock().unwrap_or_else(|e| e.into_inner()).get(module as usize).cloned();
        let fail = |detail: &str| DeviceError::Launch {
            device: self.name.clone(),
            kernel: format!("entry {entry} of module {module}"),
            detail: detail.to_string(),
        };
        let found = found.ok_or_else(|| fail("there is no such module"))?;
        let k = found.get(entry).ok_or_else(|| fail("there is no such entry"))?;
        let count = grid.iter().try_fold(1i64, |a, &n| a.checked_mul(n.max(0)));
        let count = count.and_then(|c| u32::try_from(c).ok()).ok_or_else(|| fail("the grid is too large"))?;
        if count == 0 {
            return Ok(Event::DONE);
        }
        let workspace = match k.workspace {
            0 => None,
            n => Some(self.alloc(n * u64::from(count))?),
        };
        let mut bytes = block(self.sync, workspace.map_or(0, |m| m.address), args, &k.widths, grid);
        // SAFETY: the function was loaded from this runtime; the block has the layout that the compiler gave the
        // kernel's parameters and lives until the launch has copied it.
        let code = unsafe {
            (self.f.aclrtLaunchKernelWithHostArgs)(
                k.function as Ptr,
                count,
                self.stream as Ptr,
                std::ptr::null_mut(),
                bytes.as_mut_ptr().cast(),
                bytes.len(),
                std::ptr::null_mut(),
                0,
            )
        };
        let launched = check(code, &k.name).map_err(|e| fail(&e));
        if let Some(m) = workspace {
            self.synchronise()?;
            self.free(m);
        }
        launched.map(|()| Event(1))
    }

    fn copy(&self, dst: Mem, src: Mem, _: Event) -> Result<Event, DeviceError> {
        self.synchronise()?;
        let kind = match (self.is_own(src.address), self.is_own(dst.address)) {
            (false, false) => 0,
            (false, true) => 1,
            (true, false) => 2,
            (true, true) => 3,
        };
        let n = src.bytes.min(dst.bytes) as usize;
        // SAFETY: by the device's contract both are live memory of at least `n` bytes.
        let code =
            unsafe { (self.f.aclrtMemcpy)(dst.address as Ptr, n, src.address as *const c_void, n, kind) };
        check(code, "aclrtMemcpy").map_err(|e| self.lost(e))?;
        Ok(Event::DONE)
    }

    fn wait(&self, _: Event) -> Result<(), DeviceError> {
        self.synchronise()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_argument_block_is_aligned() {
        let args = [LaunchArg::Buffer(Mem { address: 0x1122, bytes: 64 }, 16), LaunchArg::Scalar(7)];
        let b = block(1, 2, &args, &[4], [3, 4, 5]);
        let at = |i: usize, n: usize| {
            let mut out = [0; 8];
            out[..n].copy_from_slice(&b[i..i + n]);
            u64::from_le_bytes(out)
        };
        let words =
            [at(0, 8), at(8, 8), at(16, 8), at(24, 8), at(32, 4), at(40, 8), at(48, 4), at(52, 4), at(56, 4)];
        assert_eq!(words, [1, 0, 2, 0x1122, 7, 16, 3, 4, 5]);
        assert_eq!(b.len(), 60);
    }

    #[test]
    fn scalars_have_their_widths() {
        let text = "func.func @k(%lock: memref<?xi8>, %ws: memref<?xi8>, %p0: memref<?xf32>, %p1: i64, %p2: f32, %len0: i64, %gx: i32)";
        assert_eq!(widths(text), [8, 4]);
    }

    #[test]
    fn without_the_runtime_it_says_so() {
        let chip = Chip::parse(include_str!("../../../chips/ascend-910b.toml")).unwrap();
        if let Err(e) = Npu::open(&chip) {
            let said = e.to_string();
            assert!(said.starts_with("[V004]"), "{said}");
        }
    }
}
