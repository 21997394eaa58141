//! What an artifact holds: the chip's name, and of each kernel the text that was emitted and the device program that the vendor's compiler
//! planned for it.

/// One kernel of an artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The emitted text, which `bishengir-compile` makes an object file of where the toolkit is.
    pub text: String,
    /// The planned device program, in MLIR's generic form.
    pub planned: String,
}

const MAGIC: &str = "tongtu ascend 1";

/// The bytes of an artifact.
pub fn write(chip: &str, parts: &[Part]) -> String {
    let mut out = format!("{MAGIC}\n{chip}\n{}\n", parts.len());
    for p in parts {
        out.push_str(&format!("{} {}\n{}{}", p.text.len(), p.planned.len(), p.text, p.planned));
    }
    out
}

/// Reads what [`write()`] wrote: the chip's name and the kernels; nothing if it is something else.
pub fn read(bytes: &[u8]) -> Option<(String, Vec<Part>)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut head = text.splitn(4, '\n');
    if head.next()? != MAGIC {
        return None;
    }
    let (chip, count): (&str, usize) = (head.next()?, head.next()?.parse().ok()?);
    let mut rest = head.next()?;
    let mut parts = Vec::new();
    for _ in 0..count {
        let (line, body) = rest.split_once('\n')?;
        let (text, planned) = line.split_once(' ')?;
        let (text, planned): (usize, usize) = (text.parse().ok()?, planned.parse().ok()?);
        let end = text.checked_add(planned)?;
        parts.push(Part { text: body.get(..text)?.to_string(), planned: body.get(text..end)?.to_string() });
        rest = &body[end..];
    }
    rest.is_empty().then(|| (chip.to_string(), parts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_back() {
        let part = |a: &str, b: &str| Part { text: a.into(), planned: b.into() };
        let parts = vec![part("a\nb", "é"), part("", "x")];
        let text = write("chip", &parts);
        assert_eq!(read(text.as_bytes()), Some(("chip".to_string(), parts)));
        for n in 0..text.len() {
            assert_eq!(read(&text.as_bytes()[..n]), None, "{n}");
        }
    }
}
