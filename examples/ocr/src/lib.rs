//! Reads the text on a picture with PaddleOCR's models: find the lines, turn the ones that stand on their heads, read them.
//!
//! Each of the three models is compiled once and then runs on pictures of every size and on batches of lines of every
//! width. Preparation and post-processing are as PaddleOCR documents them.

mod detect;
mod geometry;
mod page;
mod recognise;

use std::path::{Path, PathBuf};

use image::RgbImage;
use image::imageops::{FilterType, resize, rotate180};
use serde::Serialize;
use tongtu::{Model, Options, Session, Tensor};

pub use detect::Detection;
pub use geometry::{Point, Quad};
pub use page::page;

use detect::{input_size, quads};
use geometry::{crop, reading_order};
use recognise::decode;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A model: loading, compiling or running it.
    #[error(transparent)]
    Model(#[from] tongtu::Error),
    /// The picture.
    #[error("{}: {error}", path.display())]
    Picture {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: image::ImageError,
    },
    /// Another file.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's words.
        error: std::io::Error,
    },
    /// A model gives something else than expected of it.
    #[error("the {0} model gives {1}")]
    Output(&'static str, String),
}

/// A line of text on a picture.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// What it says.
    pub text: String,
    /// How sure the recogniser is, the mean over the characters, in 0..1.
    pub confidence: f32,
    /// Its corners in pixels: top left, top right, bottom right, bottom left as the picture is seen.
    pub corners: Quad,
    /// Whether it stands on its head.
    pub turned: bool,
}

/// The height that the recogniser reads lines at, in pixels.
const HEIGHT: u32 = 48;
/// The width of the direction classifier's input.
const CLASSIFIER_WIDTH: u32 = 192;
/// The least width of the recogniser's input.
const RECOGNISER_WIDTH: u32 = 320;
/// A line is turned if the classifier is surer than this.
const TURN: f32 = 0.9;
/// Lines read at a time.
const BATCH: usize = 6;
/// Lines less sure than this are left out.
const LEAST_CONFIDENCE: f32 = 0.5;

/// Mean and deviation of a channel, in the order of the model's channels (blue, green, red).
type Scale = [(f32, f32); 3];
/// The detector's.
const NATURAL: Scale = [(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)];
/// The others'.
const EVEN: Scale = [(0.5, 0.5); 3];

/// The three models, compiled, with the characters that the recogniser knows.
pub struct Reader {
    detector: Session,
    classifier: Session,
    recogniser: Session,
    characters: Vec<String>,
    /// How lines are found.
    pub detection: Detection,
}

fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
    move |error| Error::File { path: path.to_path_buf(), error }
}

/// Opens a picture.
pub fn open(path: &Path) -> Result<RgbImage, Error> {
    let picture = |error| Error::Picture { path: path.to_path_buf(), error };
    Ok(image::open(path).map_err(picture)?.into_rgb8())
}

/// Pictures as one tensor `[n, 3, height, width]`, each at the left of its width, the rest zero.
fn tensor(pictures: &[RgbImage], width: u32, height: u32, scale: Scale) -> Result<Tensor, Error> {
    let (w, h) = (width as usize, height as usize);
    let mut data = vec![0f32; pictures.len() * 3 * w * h];
    for (picture, out) in pictures.iter().zip(data.chunks_exact_mut(3 * w * h)) {
        for (x, y, pixel) in picture.enumerate_pixels() {
            for (c, (mean, deviation)) in scale.into_iter().enumerate() {
                let value = f32::from(pixel[2 - c]) / 255.0;
                out[(c * h + y as usize) * w + x as usize] = (value - mean) / deviation;
            }
        }
    }
    Ok(Tensor::from_slice(&[pictures.len(), 3, h, w], &data).map_err(tongtu::Error::from)?)
}

/// Runs a model of one input and one output.
fn run(session: &Session, input: Tensor) -> Result<(Vec<usize>, Vec<f32>), Error> {
    let output = session.run(&[(session.inputs()[0], input)])?.tensor(session.output_names()[0])?;
    let data = output.to_vec::<f32>().map_err(tongtu::Error::from)?;
    Ok((output.shape().to_vec(), data))
}

/// A line scaled to the height the models take, no wider than given.
fn line_of(picture: &RgbImage, widest: u32) -> RgbImage {
    let width = (HEIGHT as f32 * ratio(picture)).ceil() as u32;
    resize(picture, width.clamp(1, widest), HEIGHT, FilterType::Triangle)
}

fn ratio(picture: &RgbImage) -> f32 {
    picture.width() as f32 / picture.height() as f32
}

impl Reader {
    /// Loads and compiles the models of a version of PaddleOCR (`v4`, `v6`) from the folder that `scripts/fetch-models`
    /// fills.
    pub fn new(models: &Path, version: &str, options: &Options) -> Result<Reader, Error> {
        let load = |name: &str| Model::load(models.join(name).join("model.onnx"))?.compile(options);
        let characters = models.join(format!("ppocr-{version}-rec")).join("characters.txt");
        let text = std::fs::read_to_string(&characters).map_err(file(&characters))?;
        Ok(Reader {
            detector: load(&format!("ppocr-{version}-det"))?,
            classifier: load("ppocr-cls")?,
            recogniser: load(&format!("ppocr-{version}-rec"))?,
            characters: text.lines().map(str::to_string).collect(),
            detection: Detection::default(),
        })
    }

    /// The text on a picture, in reading order.
    pub fn read(&self, picture: &RgbImage) -> Result<Vec<Line>, Error> {
        let mut corners = self.find(picture)?;
        reading_order(&mut corners);
        let mut lines: Vec<RgbImage> = corners.iter().map(|q| crop(picture, q)).collect();
        let turned = self.turn(&mut lines)?;
        let texts = self.recognise(&lines)?;
        let all = corners.into_iter().zip(turned).zip(texts);
        let line = |((corners, turned), (text, confidence))| Line { text, confidence, corners, turned };
        Ok(all.map(line).filter(|l| l.confidence >= LEAST_CONFIDENCE && !l.text.is_empty()).collect())
    }

    /// Where lines are.
    fn find(&self, picture: &RgbImage) -> Result<Vec<Quad>, Error> {
        let (width, height) = input_size(picture.width(), picture.height(), self.detection.longest_side);
        let small = resize(picture, width, height, FilterType::Triangle);
        let (shape, map) = run(&self.detector, tensor(&[small], width, height, NATURAL)?)?;
        if shape != [1, 1, height as usize, width as usize] {
            return Err(Error::Output("detection", format!("a map of {shape:?}")));
        }
        let scale = (picture.width() as f32 / width as f32, picture.height() as f32 / height as f32);
        let found = quads(&map, width as usize, height as usize, &self.detection);
        Ok(found.into_iter().map(|q| q.scaled(scale, picture.width(), picture.height())).collect())
    }

    /// Turns the lines that stand on their heads, and says which.
    fn turn(&self, lines: &mut [RgbImage]) -> Result<Vec<bool>, Error> {
        let mut turned = Vec::new();
        for part in lines.chunks_mut(BATCH) {
            let small: Vec<RgbImage> = part.iter().map(|l| line_of(l, CLASSIFIER_WIDTH)).collect();
            let (shape, scores) = run(&self.classifier, tensor(&small, CLASSIFIER_WIDTH, HEIGHT, EVEN)?)?;
            if shape != [part.len(), 2] {
                return Err(Error::Output("direction", format!("scores of {shape:?}")));
            }
            for (line, score) in part.iter_mut().zip(scores.chunks_exact(2)) {
                let turn = score[1] > TURN;
                if turn {
                    *line = rotate180(line);
                }
                turned.push(turn);
            }
        }
        Ok(turned)
    }

    /// What lines say, and how sure that is. Lines of like shape share a batch, as wide as its widest.
    fn recognise(&self, lines: &[RgbImage]) -> Result<Vec<(String, f32)>, Error> {
        let mut order: Vec<usize> = (0..lines.len()).collect();
        order.sort_by(|&a, &b| ratio(&lines[a]).total_cmp(&ratio(&lines[b])));
        let mut texts = vec![(String::new(), 0.0); lines.len()];
        for part in order.chunks(BATCH) {
            let small: Vec<RgbImage> = part.iter().map(|&i| line_of(&lines[i], u32::MAX)).collect();
            let width = small.iter().map(RgbImage::width).fold(RECOGNISER_WIDTH, u32::max);
            let (shape, scores) = run(&self.recogniser, tensor(&small, width, HEIGHT, EVEN)?)?;
            let &[count, steps, classes] = shape.as_slice() else {
                return Err(Error::Output("recognition", format!("scores of {shape:?}")));
            };
            // Class 0 is the blank; the space comes after the characters.
            if count != part.len() || classes != self.characters.len() + 2 {
                return Err(Error::Output("recognition", format!("scores of {shape:?}")));
            }
            for (&i, scores) in part.iter().zip(scores.chunks_exact(steps * classes)) {
                texts[i] = decode(scores, classes, &self.characters);
            }
        }
        Ok(texts)
    }
}
