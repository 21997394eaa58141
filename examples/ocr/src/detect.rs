//! From the detector's map to boxes: differentiable binarisation's post-processing.

use crate::geometry::{Point, Quad, Rectangle, hull};

/// How lines are found; the defaults are PaddleOCR's.
#[derive(Clone, Debug)]
pub struct Detection {
    /// A larger picture is made smaller until its longest side has this many pixels.
    pub longest_side: u32,
    /// Pixels above this belong to text.
    pub threshold: f32,
    /// Boxes whose mean is below this are dropped.
    pub box_threshold: f32,
    /// How far boxes grow, in areas by perimeters: the map shows the core of a line only.
    pub unclip_ratio: f32,
    /// Boxes with a side below this, in pixels of the map, are dropped.
    pub least_side: f32,
}

impl Default for Detection {
    fn default() -> Detection {
        Detection {
            longest_side: 960,
            threshold: 0.3,
            box_threshold: 0.6,
            unclip_ratio: 1.5,
            least_side: 3.0,
        }
    }
}

/// The detector's input for a picture: multiples of 32, the longest side within the limit.
pub(crate) fn input_size(width: u32, height: u32, longest: u32) -> (u32, u32) {
    let ratio = (longest as f32 / width.max(height) as f32).min(1.0);
    let fit = |side: u32| ((side as f32 * ratio / 32.0).round() as u32).max(1) * 32;
    (fit(width), fit(height))
}

/// Boxes around the lines of a map, row after row.
pub(crate) fn quads(map: &[f32], width: usize, height: usize, options: &Detection) -> Vec<Quad> {
    let mut found = Vec::new();
    for points in regions(map, width, height, options.threshold) {
        let Some(core) = Rectangle::around(&hull(points)) else { continue };
        if core.least_side() < options.least_side || mean(map, width, height, &core) < options.box_threshold {
            continue;
        }
        let grown = core.grown(core.area() * options.unclip_ratio / core.perimeter());
        if grown.least_side() >= options.least_side + 2.0 {
            found.push(grown.corners());
        }
    }
    found
}

/// The regions above a threshold, connected by sides or corners: of each, the first and last pixel of every row.
fn regions(map: &[f32], width: usize, height: usize, threshold: f32) -> Vec<Vec<Point>> {
    let mut seen = vec![false; map.len()];
    let mut found = Vec::new();
    for start in 0..map.len() {
        if seen[start] || map[start] <= threshold {
            continue;
        }
        seen[start] = true;
        // Rows of a region by first and last column.
        let mut rows: Vec<(usize, usize)> = Vec::new();
        let top = start / width;
        let mut open = vec![start];
        while let Some(at) = open.pop() {
            let (x, y) = (at % width, at / width);
            // The region was met at its topmost row.
            if rows.len() <= y - top {
                rows.resize(y - top + 1, (usize::MAX, 0));
            }
            let row = &mut rows[y - top];
            *row = (row.0.min(x), row.1.max(x));
            for ny in y.saturating_sub(1)..=(y + 1).min(height - 1) {
                for nx in x.saturating_sub(1)..=(x + 1).min(width - 1) {
                    let next = ny * width + nx;
                    if !seen[next] && map[next] > threshold {
                        seen[next] = true;
                        open.push(next);
                    }
                }
            }
        }
        let ends = rows.iter().enumerate().flat_map(|(i, &(first, last))| {
            [first, last].map(|x| Point { x: x as f32, y: (top + i) as f32 })
        });
        found.push(ends.collect());
    }
    found
}

/// The mean of the map inside a rectangle.
fn mean(map: &[f32], width: usize, height: usize, rectangle: &Rectangle) -> f32 {
    let corners = rectangle.corners().0;
    let range = |values: [f32; 4], len: usize| {
        let low = values.into_iter().fold(f32::MAX, f32::min).floor().max(0.0) as usize;
        let high = values.into_iter().fold(0.0, f32::max).ceil() as usize;
        low..=high.min(len - 1)
    };
    let (mut sum, mut count) = (0.0, 0);
    for y in range(corners.map(|p| p.y), height) {
        for x in range(corners.map(|p| p.x), width) {
            if rectangle.holds(Point { x: x as f32, y: y as f32 }) {
                sum += map[y * width + x];
                count += 1;
            }
        }
    }
    if count == 0 { 0.0 } else { sum / count as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_multiples_of_32_within_the_limit() {
        assert_eq!(input_size(640, 376, 960), (640, 384));
        assert_eq!(input_size(4000, 3000, 960), (960, 736));
        assert_eq!(input_size(5, 1000, 960), (32, 960));
    }

    /// A map of 60 × 40 with one rectangle, from (10, 5) to (49, 14), in it.
    fn one(inside: f32) -> Vec<f32> {
        let on = |i: usize| (10..50).contains(&(i % 60)) && (5..15).contains(&(i / 60));
        (0..60 * 40).map(|i| if on(i) { inside } else { 0.1 }).collect()
    }

    #[test]
    fn a_rectangle_is_found_and_grown() {
        let options = Detection::default();
        let found = quads(&one(0.9), 60, 40, &options);
        // 39 × 9 grows by 1.5 · 351 / 96 pixels on every side.
        let by = 1.5 * 351.0 / 96.0;
        let want =
            [(10.0 - by, 5.0 - by), (49.0 + by, 5.0 - by), (49.0 + by, 14.0 + by), (10.0 - by, 14.0 + by)];
        assert_eq!(found.len(), 1);
        for (p, (x, y)) in found[0].0.iter().zip(want) {
            assert!((p.x - x).abs() < 1e-3 && (p.y - y).abs() < 1e-3, "{p:?}, not {x}, {y}");
        }
        assert!(quads(&one(0.5), 60, 40, &options).is_empty(), "below the threshold of boxes");
        assert!(quads(&one(0.2), 60, 40, &options).is_empty(), "below the threshold of pixels");
    }
}
