//! One web page that shows a picture and what was read on it.

use crate::Line;

const HEAD: &str = r##"<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Text on a picture</title>
<style>
  :root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
  body { margin: 2rem; display: flex; flex-wrap: wrap; gap: 2rem; align-items: flex-start; }
  figure { margin: 0; flex: 2 1 24rem; }
  figure svg { width: 100%; height: auto; display: block; border-radius: 6px; }
  table { flex: 1 1 20rem; border-collapse: collapse; }
  td { padding: .35rem .6rem; border-bottom: 1px solid #8884; }
  td.n, td.c { font-variant-numeric: tabular-nums; opacity: .65; text-align: right; }
  polygon { fill: #06c3; stroke: #06c; stroke-width: 2; vector-effect: non-scaling-stroke; }
  .on polygon, polygon.on { fill: #f808; stroke: #f80; }
  tr.on { background: #f802; }
  svg text { font: 600 14px system-ui, sans-serif; fill: #fff; stroke: #06c; stroke-width: 4; paint-order: stroke; }
</style>
"##;

const TAIL: &str = r##"<script>
  for (const part of document.querySelectorAll("[data-line]"))
    for (const [event, on] of [["mouseenter", true], ["mouseleave", false]])
      part.addEventListener(event, () =>
        document.querySelectorAll(`[data-line="${part.dataset.line}"]`).forEach((e) => e.classList.toggle("on", on)));
</script>
</html>
"##;

/// The page, with the picture file (PNG or JPEG) of that size in it.
pub fn page(file: &[u8], width: u32, height: u32, lines: &[Line]) -> String {
    let kind = if file.starts_with(b"\x89PNG") { "png" } else { "jpeg" };
    let mut out = String::from(HEAD);
    out += &format!("<figure><svg viewBox=\"0 0 {width} {height}\" role=\"img\">\n");
    out += &format!("<image width=\"{width}\" height=\"{height}\" href=\"data:image/{kind};base64,");
    base64(file, &mut out);
    out += "\"/>\n";
    for (i, line) in lines.iter().enumerate() {
        let corners: Vec<String> = line.corners.0.iter().map(|p| format!("{},{}", p.x, p.y)).collect();
        let at = line.corners.0[0];
        out += &format!("<polygon data-line=\"{i}\" points=\"{}\"/>", corners.join(" "));
        out += &format!("<text x=\"{}\" y=\"{}\">{}</text>\n", at.x, at.y - 3.0, i + 1);
    }
    out += "</svg></figure>\n<table>\n";
    for (i, line) in lines.iter().enumerate() {
        let (text, sure) = (escape(&line.text), 100.0 * line.confidence);
        let turned = if line.turned { " ↻" } else { "" };
        out += &format!("<tr data-line=\"{i}\"><td class=\"n\">{}<td>{text}{turned}", i + 1);
        out += &format!("<td class=\"c\">{sure:.1} %\n");
    }
    out + "</table>\n" + TAIL
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn base64(bytes: &[u8], out: &mut String) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for part in bytes.chunks(3) {
        let word = (0..3).fold(0u32, |word, i| word << 8 | u32::from(part.get(i).copied().unwrap_or(0)));
        for i in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * i) & 63) as usize];
            out.push(if i <= part.len() { char::from(digit) } else { '=' });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_pads_what_is_not_a_multiple_of_three() {
        for (bytes, want) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            let mut out = String::new();
            base64(bytes.as_bytes(), &mut out);
            assert_eq!(out, want);
        }
    }
}
