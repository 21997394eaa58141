//! The pictures in `examples/data` are read as what is written on them, and as another program for the same models reads them.

use std::path::{Path, PathBuf};

use ocr::{Line, Reader, open, page};
use serde_json::Value;
use tongtu::{Options, cache};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data").join(name)
}

/// The models, where `scripts/fetch-models` has brought them.
fn models() -> Option<PathBuf> {
    let models = cache::root()?.join("models");
    if ["ppocr-v4-det", "ppocr-cls", "ppocr-v4-rec"].iter().all(|m| models.join(m).is_dir()) {
        return Some(models);
    }
    eprintln!("left out: the models are not there; run scripts/fetch-models");
    None
}

fn read(version: &str, picture: &str) -> Option<Vec<Line>> {
    let reader = Reader::new(&models()?, version, &Options::host()).unwrap();
    Some(reader.read(&open(&data(picture)).unwrap()).unwrap())
}

/// Without spaces, which the models often drop, and with the narrow form of punctuation.
fn plain(text: &str) -> String {
    let narrow = |c: char| match c {
        '！'..='～' => char::from_u32(c as u32 - 0xfee0).unwrap_or(c),
        c => c,
    };
    text.chars().filter(|c| !c.is_whitespace()).map(narrow).collect()
}

/// Every line on a picture is read, in order.
fn says_what_is_written(version: &str, name: &str) {
    let Some(lines) = read(version, &format!("{name}.png")) else { return };
    let found: String = lines.iter().map(|l| plain(&l.text)).collect();
    let wanted = std::fs::read_to_string(data(&format!("{name}.txt"))).unwrap();
    assert_eq!(found, plain(&wanted), "{version} {name}");
    assert!(lines.iter().all(|l| l.confidence > 0.9), "{lines:?}");
}

#[test]
fn pictures_say_what_is_written_on_them() {
    for version in ["v4", "v6"] {
        for name in ["sign", "notice"] {
            says_what_is_written(version, name);
        }
    }
}

#[test]
fn lines_are_where_another_program_finds_them() {
    for name in ["sign", "notice"] {
        let Some(lines) = read("v4", &format!("{name}.png")) else { return };
        let text = std::fs::read_to_string(data(&format!("{name}.json"))).unwrap();
        let wanted: Vec<Value> = serde_json::from_str(&text).unwrap();
        assert_eq!(lines.len(), wanted.len(), "{name}");
        for line in &lines {
            let same = |w: &&Value| plain(w["text"].as_str().unwrap()) == plain(&line.text);
            let want =
                wanted.iter().find(same).unwrap_or_else(|| panic!("{name}: nobody else reads {line:?}"));
            for (got, want) in line.corners.0.iter().zip(want["corners"].as_array().unwrap()) {
                let (x, y) = (want[0].as_f64().unwrap() as f32, want[1].as_f64().unwrap() as f32);
                let off = (got.x - x).abs().max((got.y - y).abs());
                assert!(off <= 6.0, "{name}: {got:?} is not at ({x}, {y}): {line:?}");
            }
        }
    }
}

#[test]
fn only_the_line_on_its_head_is_turned() {
    let Some(lines) = read("v4", "notice.png") else { return };
    let turned: Vec<&str> = lines.iter().filter(|l| l.turned).map(|l| l.text.as_str()).collect();
    assert_eq!(turned, ["Seen from the other side"]);
}

#[test]
fn a_picture_without_text_has_no_lines() {
    let Some(models) = models() else { return };
    let reader = Reader::new(&models, "v4", &Options::host()).unwrap();
    for (width, height) in [(1, 1), (7, 300), (320, 200)] {
        let blank = image::RgbImage::from_pixel(width, height, image::Rgb([200, 210, 220]));
        assert!(reader.read(&blank).unwrap().is_empty(), "{width} x {height}");
    }
}

#[test]
fn the_page_shows_every_line() {
    let Some(lines) = read("v4", "sign.png") else { return };
    let file = std::fs::read(data("sign.png")).unwrap();
    let html = page(&file, 640, 376, &lines);
    assert_eq!(html.matches("<polygon").count(), lines.len());
    assert!(lines.iter().all(|l| html.contains(&l.text)));
    assert!(html.contains("href=\"data:image/png;base64,iVBOR"));
}
