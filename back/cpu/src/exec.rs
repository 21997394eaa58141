//! Loading artifacts and running their kernels.

use crate::artifact::{Artifact, Entry};
use crate::{Error, Pool};
use std::sync::OnceLock;
use tongtu_chip::Chip;

/// A buffer argument, as the kernel ABI lays it out.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Buf {
    /// The first element.
    pub ptr: *mut u8,
    /// Elements it holds.
    pub len: i64,
}

// SAFETY: a `Buf` is an address and a length; whoever launches a kernel with it vouches for its use.
unsafe impl Send for Buf {}
// SAFETY: as above; a `Buf` itself is never changed through a shared reference.
unsafe impl Sync for Buf {}

type Function = unsafe extern "C" fn(*const Buf, *const i64, *const i64, i64, i64, *mut u8);

/// An artifact in executable memory.
pub struct Loaded {
    code: memmap2::Mmap,
    entries: Vec<Entry>,
}

/// A kernel of a loaded artifact.
#[derive(Clone, Copy)]
pub struct Kernel<'a> {
    code: &'a memmap2::Mmap,
    entry: &'a Entry,
}

/// The features of this machine, found once.
fn host_features() -> &'static [String] {
    static FEATURES: OnceLock<Vec<String>> = OnceLock::new();
    FEATURES.get_or_init(|| Chip::host().map(|c| c.features).unwrap_or_default())
}

impl Loaded {
    /// Checks that this machine can run the artifact, and places its code. The memory is never writable and
    /// executable at once.
    pub fn new(artifact: &Artifact) -> Result<Loaded, Error> {
        // Machines of varying vector length are not described by `Chip::host`, so code bound to one is refused.
        artifact.runs_on(std::env::consts::ARCH, 0, host_features())?;
        if artifact.features.iter().any(|f| f.starts_with("amx-")) {
            request_tiles()?;
        }
        if artifact.entries.iter().any(|e| e.offset as usize >= artifact.blob.len()) {
            return Err(Error::Artifact("a kernel starts outside the blob".to_string()));
        }
        let system = |what| move |error| Error::System { what, error };
        let mut memory = memmap2::MmapMut::map_anon(artifact.blob.len().max(1))
            .map_err(system("mapping memory for code"))?;
        memory[..artifact.blob.len()].copy_from_slice(&artifact.blob);
        let code = memory.make_exec().map_err(system("making code executable"))?;
        Ok(Loaded { code, entries: artifact.entries.clone() })
    }

    /// The kernels, in the artifact's order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The kernel called `name`.
    pub fn kernel(&self, name: &str) -> Result<Kernel<'_>, Error> {
        let entry = self.entries.iter().find(|e| e.name == name);
        let entry = entry.ok_or_else(|| Error::NoKernel(name.to_string()))?;
        Ok(Kernel { code: &self.code, entry })
    }

    /// The kernel at `index` of [`Loaded::entries`].
    pub fn kernel_at(&self, index: usize) -> Option<Kernel<'_>> {
        Some(Kernel { code: &self.code, entry: self.entries.get(index)? })
    }
}

impl<'a> Kernel<'a> {
    /// What the artifact says of it.
    pub fn entry(&self) -> &'a Entry {
        self.entry
    }

    /// Runs all instances of `grid` on the threads of `pool`, at least `grain` in one call, and returns when
    /// all are done.
    ///
    /// # Safety
    /// Each buffer's memory is live, as long as stated, of the element type the kernel was compiled for and
    /// aligned as that asks; nobody else writes to what the kernel reads or touches what it writes until this
    /// returns; the buffers overlap only as the kernel allows. The artifact was compiled by this crate.
    pub unsafe fn launch(
        &self,
        pool: &Pool,
        bufs: &[Buf],
        scalars: &[i64],
        grid: [i64; 3],
        grain: i64,
    ) -> Result<(), Error> {
        let bad = |problem: String| Error::Launch { kernel: self.entry.name.clone(), problem };
        if bufs.len() != self.entry.buffers as usize || scalars.len() != self.entry.scalars as usize {
            return Err(bad(format!(
                "{} buffers and {} scalars given, {} and {} taken",
                bufs.len(),
                scalars.len(),
                self.entry.buffers,
                self.entry.scalars
            )));
        }
        if grid.iter().any(|g| *g < 0) {
            return Err(bad(format!("the grid {grid:?} has a negative size")));
        }
        let total = grid.iter().try_fold(1i64, |n, g| n.checked_mul(*g));
        let total = total.ok_or_else(|| bad(format!("the grid {grid:?} is too large")))?;
        let scratch = usize::try_from(self.entry.scratch).map_err(|e| bad(e.to_string()))?;
        // SAFETY: the offset was checked to be inside the code when it was loaded, and by this function's
        // contract a function of this type starts there.
        let function = unsafe {
            std::mem::transmute::<*const u8, Function>(self.code.as_ptr().add(self.entry.offset as usize))
        };
        pool.run(total, grain, scratch, &|_, first, last, scratch| {
            // SAFETY: the arguments are as the ABI asks: the slices outlive the call, the range lies in the
            // grid, the scratch is this worker's own; the rest is this function's contract.
            unsafe { function(bufs.as_ptr(), scalars.as_ptr(), grid.as_ptr(), first, last, scratch) }
        })
    }
}

/// Asks the kernel, once, for the right to use AMX tile registers.
fn request_tiles() -> Result<(), Error> {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    let granted = *ANSWER.get_or_init(|| {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        {
            const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
            const XFEATURE_XTILEDATA: libc::c_long = 18;
            // SAFETY: this system call takes two integers and touches no memory of ours.
            unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
        }
        #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
        {
            false
        }
    });
    if granted {
        Ok(())
    } else {
        Err(Error::Feature("amx-tile (the operating system refuses it)".to_string()))
    }
}
