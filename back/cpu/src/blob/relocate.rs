//! How references inside a blob are written into its instructions, for each architecture. The names are those of the ELF
//! supplements of the architectures, which also give the fields and formulas.

use super::{PAGE, bad};
use crate::Error;
use object::elf::*;
use std::collections::HashMap;

/// One reference, inside the blob.
pub(super) struct Reference {
    /// Where it is written.
    pub at: u64,
    /// What it refers to, with the addend.
    pub target: i64,
    pub step: Step,
}

/// Fields of an instruction that hold an offset.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// 32 bits, relative to their own address.
    Relative32,
    /// So many bytes, to which the target is added (or from which it is taken).
    Sum(usize, bool),
    /// AArch64: the offset in bytes of an `adr`, and in pages of an `adrp`.
    Adr,
    Adrp,
    /// AArch64: the offset in words of a load of a constant, 19 bits.
    Literal,
    /// AArch64: 26 bits of words.
    Branch26,
    /// AArch64: the low 12 bits of an address, in units of so many bytes (a power of two).
    Low12(u32),
    /// RISC-V: the upper 20 bits of an offset; the lower 12 come from the reference at the instruction they point to.
    Upper20,
    LowerLoad,
    LowerStore,
    /// RISC-V: a pair of instructions that hold an offset.
    Call,
    /// RISC-V: 12 and 20 bits of a branch and a jump.
    Branch,
    Jump,
    /// LoongArch: the page of an address, relative; its low 12 bits; 26 bits of words.
    Page20,
    PageLow12,
    LongBranch26,
}

impl Step {
    /// Whether it depends on where the blob lies in a page.
    pub fn by_page(self) -> bool {
        matches!(self, Step::Adrp | Step::Low12(_) | Step::Page20 | Step::PageLow12)
    }
}

/// What a relocation of an architecture asks for; `None` for one that only marks.
pub(super) fn step(machine: u16, r_type: u32) -> Result<Option<Step>, Error> {
    let unknown = || bad(format!("relocation type {r_type}"));
    let step = match machine {
        EM_X86_64 => match r_type {
            R_X86_64_PC32 | R_X86_64_PLT32 => Step::Relative32,
            _ => return Err(unknown()),
        },
        EM_AARCH64 => match r_type {
            R_AARCH64_PREL32 => Step::Relative32,
            R_AARCH64_ADR_PREL_LO21 => Step::Adr,
            R_AARCH64_ADR_PREL_PG_HI21 => Step::Adrp,
            R_AARCH64_LD_PREL_LO19 => Step::Literal,
            R_AARCH64_CALL26 | R_AARCH64_JUMP26 => Step::Branch26,
            R_AARCH64_ADD_ABS_LO12_NC | R_AARCH64_LDST8_ABS_LO12_NC => Step::Low12(1),
            R_AARCH64_LDST16_ABS_LO12_NC => Step::Low12(2),
            R_AARCH64_LDST32_ABS_LO12_NC => Step::Low12(4),
            R_AARCH64_LDST64_ABS_LO12_NC => Step::Low12(8),
            R_AARCH64_LDST128_ABS_LO12_NC => Step::Low12(16),
            _ => return Err(unknown()),
        },
        EM_RISCV => match r_type {
            R_RISCV_RELAX => return Ok(None),
            R_RISCV_32_PCREL => Step::Relative32,
            R_RISCV_PCREL_HI20 => Step::Upper20,
            R_RISCV_PCREL_LO12_I => Step::LowerLoad,
            R_RISCV_PCREL_LO12_S => Step::LowerStore,
            R_RISCV_CALL | R_RISCV_CALL_PLT => Step::Call,
            R_RISCV_BRANCH => Step::Branch,
            R_RISCV_JAL => Step::Jump,
            R_RISCV_ADD16 => Step::Sum(2, false),
            R_RISCV_SUB16 => Step::Sum(2, true),
            R_RISCV_ADD32 => Step::Sum(4, false),
            R_RISCV_SUB32 => Step::Sum(4, true),
            _ => return Err(unknown()),
        },
        EM_LOONGARCH => match r_type {
            R_LARCH_RELAX => return Ok(None),
            R_LARCH_32_PCREL => Step::Relative32,
            R_LARCH_PCALA_HI20 => Step::Page20,
            R_LARCH_PCALA_LO12 => Step::PageLow12,
            R_LARCH_B26 => Step::LongBranch26,
            R_LARCH_ADD32 => Step::Sum(4, false),
            R_LARCH_SUB32 => Step::Sum(4, true),
            _ => return Err(unknown()),
        },
        _ => return Err(bad(format!("machine {machine} is not known"))),
    };
    Ok(Some(step))
}

/// `value` as a signed number of so many bits, in its low bits.
fn fit(value: i64, bits: u32) -> Result<u32, Error> {
    if value >= -(1 << (bits - 1)) && value < 1 << (bits - 1) {
        Ok((value as u64 & ((1 << bits) - 1)) as u32)
    } else {
        Err(bad(format!("an offset of {value} does not fit {bits} bits")))
    }
}

/// Bits `low..low + count` of `x`.
fn field(x: u32, low: u32, count: u32) -> u32 {
    x >> low & ((1 << count) - 1)
}

/// Writes all references of a blob.
pub(super) fn apply(bytes: &mut [u8], references: &[Reference]) -> Result<(), Error> {
    // RISC-V: the offset in the upper half of an address, by where that is written.
    let upper: HashMap<i64, i64> = references
        .iter()
        .filter(|r| r.step == Step::Upper20)
        .map(|r| (r.at as i64, r.target.wrapping_sub(r.at as i64)))
        .collect();
    for r in references {
        let size = match r.step {
            Step::Sum(n, _) => n,
            Step::Call => 8,
            _ => 4,
        };
        let slot = usize::try_from(r.at).ok().and_then(|at| bytes.get_mut(at..at.checked_add(size)?));
        let slot = slot.ok_or_else(|| bad("a relocation outside its section"))?;
        let mut old = [0; 8];
        old[..size].copy_from_slice(slot);
        let whole = u64::from_le_bytes(old);
        let word = whole as u32;
        let (at, target) = (r.at as i64, r.target);
        let offset = target.wrapping_sub(at);
        let page = PAGE as i64 - 1;
        let words = |bits: u32| {
            if offset % 4 == 0 { fit(offset / 4, bits) } else { Err(bad("an offset between instructions")) }
        };
        let low = |target: i64| (target & page) as u32;
        let found = || upper.get(&target).copied().ok_or_else(|| bad("half an address"));
        let new: u64 = match r.step {
            Step::Relative32 => u64::from(fit(offset, 32)?),
            Step::Sum(_, false) => whole.wrapping_add(target as u64),
            Step::Sum(_, true) => whole.wrapping_sub(target as u64),
            Step::Adr | Step::Adrp => {
                let x = match r.step {
                    Step::Adr => fit(offset, 21)?,
                    _ => fit((target & !page).wrapping_sub(at & !page) >> 12, 21)?,
                };
                (word & !0x60ff_ffe0 | field(x, 0, 2) << 29 | field(x, 2, 19) << 5).into()
            }
            Step::Literal => (word & !(0x7_ffff << 5) | words(19)? << 5).into(),
            Step::Branch26 => (word & !0x3ff_ffff | words(26)?).into(),
            Step::Low12(unit) => {
                if low(target) % unit != 0 {
                    return Err(bad("a constant is not aligned"));
                }
                (word & !(0xfff << 10) | (low(target) / unit) << 10).into()
            }
            Step::Upper20 => (word & 0xfff | fit(offset, 32)?.wrapping_add(0x800) & !0xfff).into(),
            Step::LowerLoad => (word & 0xf_ffff | fit(found()?, 32)? << 20).into(),
            Step::LowerStore => {
                let x = fit(found()?, 32)?;
                (word & 0x1ff_f07f | field(x, 5, 7) << 25 | field(x, 0, 5) << 7).into()
            }
            Step::Call => {
                let x = fit(offset, 32)?;
                let first = word & 0xfff | x.wrapping_add(0x800) & !0xfff;
                let second = (whole >> 32) as u32 & 0xf_ffff | x << 20;
                u64::from(second) << 32 | u64::from(first)
            }
            Step::Branch => {
                let x = fit(offset, 13)?;
                let high = field(x, 12, 1) << 31 | field(x, 5, 6) << 25;
                (word & 0x1ff_f07f | high | field(x, 1, 4) << 8 | field(x, 11, 1) << 7).into()
            }
            Step::Jump => {
                let x = fit(offset, 21)?;
                let high = field(x, 20, 1) << 31 | field(x, 1, 10) << 21;
                (word & 0xfff | high | field(x, 11, 1) << 20 | field(x, 12, 8) << 12).into()
            }
            Step::Page20 => {
                let x = (target.wrapping_add(0x800) & !page).wrapping_sub(at & !page) >> 12;
                (word & !(0xf_ffff << 5) | fit(x, 20)? << 5).into()
            }
            Step::PageLow12 => (word & !(0xfff << 10) | low(target) << 10).into(),
            Step::LongBranch26 => {
                let x = words(26)?;
                (word & !0x3ff_ffff | field(x, 0, 16) << 10 | field(x, 16, 10)).into()
            }
        };
        slot.copy_from_slice(&new.to_le_bytes()[..size]);
    }
    Ok(())
}
