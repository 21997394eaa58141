//! From object file to position-independent blob.
//!
//! A blob is the code and the constants of one object file, laid out in one piece, with every reference
//! inside it resolved relative to the program counter. It runs at any page-aligned address, needs no
//! linker, and calls nothing outside itself: a reference to an outside symbol is an error that names it.

mod relocate;

use crate::Error;
use object::read::elf::ElfFile64;
use object::{
    Object, ObjectSection, ObjectSymbol, RelocationFlags, RelocationTarget, SectionIndex, SectionKind,
};
use relocate::Reference;
use std::collections::HashMap;

/// Code and constants of one object file, in one piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// The bytes, to be placed at a page-aligned address.
    pub bytes: Vec<u8>,
    /// The greatest alignment that anything in it asks for, a power of two.
    pub align: usize,
    /// Offsets of the functions, by name, in the order of their offsets.
    pub entries: Vec<(String, u32)>,
}

/// The alignment a blob's start is assumed to have.
const PAGE: u64 = 4096;

fn bad(message: impl ToString) -> Error {
    Error::Object(message.to_string())
}

/// Lays out `object`, a relocatable ELF file, and resolves its references.
pub fn link(object: &[u8]) -> Result<Blob, Error> {
    let file = ElfFile64::<object::Endianness>::parse(object).map_err(bad)?;
    let machine = file.elf_header().e_machine.get(file.endian());
    let mut bytes: Vec<u8> = Vec::new();
    let mut most = 16;
    let mut place: HashMap<SectionIndex, u64> = HashMap::new();
    for code in [true, false] {
        for section in file.sections() {
            let wanted = match section.kind() {
                SectionKind::Text => code,
                SectionKind::ReadOnlyData | SectionKind::ReadOnlyString => !code,
                SectionKind::Data | SectionKind::UninitializedData | SectionKind::Tls
                    if section.size() > 0 =>
                {
                    return Err(bad("it has writable data"));
                }
                _ => false,
            };
            // Unwind tables are read-only data by kind, but kernels never unwind.
            if !wanted || section.size() == 0 || section.name() == Ok(".eh_frame") {
                continue;
            }
            let align = section.align().max(1);
            if !align.is_power_of_two() || align > PAGE {
                return Err(bad(format!("a section is aligned to {align} bytes")));
            }
            most = most.max(align);
            let at = (bytes.len() as u64).next_multiple_of(align);
            let data = section.data().map_err(bad)?;
            bytes.resize(at as usize, 0);
            bytes.extend_from_slice(data);
            place.insert(section.index(), at);
        }
    }
    if bytes.len() > i32::MAX as usize {
        return Err(bad("more than 2 GiB"));
    }
    let mut references = Vec::new();
    for section in file.sections() {
        let Some(&base) = place.get(&section.index()) else { continue };
        for (offset, relocation) in section.relocations() {
            let RelocationFlags::Elf { r_type } = relocation.flags() else {
                return Err(bad("a relocation of unknown form"));
            };
            let Some(step) = relocate::step(machine, r_type)? else { continue };
            let target = match relocation.target() {
                RelocationTarget::Symbol(index) => {
                    let symbol = file.symbol_by_index(index).map_err(bad)?;
                    if symbol.is_undefined() {
                        return Err(Error::External(symbol.name().unwrap_or("?").to_string()));
                    }
                    let home = symbol.section_index().and_then(|s| place.get(&s));
                    home.ok_or_else(|| bad("a reference outside code and constants"))? + symbol.address()
                }
                _ => return Err(bad("a relocation without a symbol")),
            };
            if step.by_page() {
                most = PAGE;
            }
            let target = (target as i64).wrapping_add(relocation.addend());
            references.push(Reference { at: base + offset, target, step });
        }
    }
    relocate::apply(&mut bytes, &references)?;
    let mut entries = Vec::new();
    for symbol in file.symbols() {
        if symbol.is_global() && symbol.is_definition() {
            let home = symbol.section_index().and_then(|s| place.get(&s));
            let home = home.ok_or_else(|| bad("a symbol outside code and constants"))?;
            let offset = u32::try_from(home + symbol.address()).map_err(bad)?;
            entries.push((symbol.name().map_err(bad)?.to_string(), offset));
        }
    }
    entries.sort_by_key(|e| e.1);
    Ok(Blob { bytes, align: most as usize, entries })
}
