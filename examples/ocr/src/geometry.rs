//! Points, rectangles at an angle, and cutting them out of pictures.

use image::imageops::rotate270;
use image::{Rgb, RgbImage};
use serde::Serialize;

/// A place on a picture, in pixels from its top left.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// To the right.
    pub x: f32,
    /// Down.
    pub y: f32,
}

impl Point {
    fn minus(self, other: Point) -> Point {
        Point { x: self.x - other.x, y: self.y - other.y }
    }

    fn dot(self, other: Point) -> f32 {
        self.x * other.x + self.y * other.y
    }

    fn cross(self, other: Point) -> f32 {
        self.x * other.y - self.y * other.x
    }

    fn length(self) -> f32 {
        self.x.hypot(self.y)
    }

    /// The point that far on the way to another.
    fn towards(self, other: Point, part: f32) -> Point {
        Point { x: self.x + part * (other.x - self.x), y: self.y + part * (other.y - self.y) }
    }
}

/// Four corners: top left, top right, bottom right, bottom left.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quad(pub [Point; 4]);

impl Quad {
    /// Corners in any order: of the two to the left the upper is the top left, and so on.
    fn ordered(mut points: [Point; 4]) -> Quad {
        points.sort_by(|a, b| a.x.total_cmp(&b.x));
        let [a, b, c, d] = points;
        let (top_left, bottom_left) = if b.y > a.y { (a, b) } else { (b, a) };
        let (top_right, bottom_right) = if d.y > c.y { (c, d) } else { (d, c) };
        Quad([top_left, top_right, bottom_right, bottom_left])
    }

    /// On a picture that many times the size, rounded to its pixels and clipped to it.
    pub(crate) fn scaled(self, (x, y): (f32, f32), width: u32, height: u32) -> Quad {
        let fit = |value: f32, limit: u32| value.round().clamp(0.0, limit.saturating_sub(1) as f32);
        Quad(self.0.map(|p| Point { x: fit(p.x * x, width), y: fit(p.y * y, height) }))
    }

    /// Lengths along the text and across it.
    fn size(&self) -> (f32, f32) {
        let [a, b, c, d] = self.0;
        (b.minus(a).length().max(c.minus(d).length()), d.minus(a).length().max(c.minus(b).length()))
    }

    fn centre(&self) -> Point {
        let sum = self.0.iter().fold(Point { x: 0.0, y: 0.0 }, |s, p| Point { x: s.x + p.x, y: s.y + p.y });
        Point { x: sum.x / 4.0, y: sum.y / 4.0 }
    }
}

/// Row by row, from left to right: boxes whose centres differ by less than half a line's height share a row.
pub(crate) fn reading_order(quads: &mut [Quad]) {
    quads.sort_by(|a, b| a.centre().y.total_cmp(&b.centre().y));
    let mut start = 0;
    while start < quads.len() {
        let (first, height) = (quads[start].centre().y, quads[start].size().1);
        let same = |q: &Quad| q.centre().y - first < height.min(q.size().1) / 2.0;
        let len = quads[start..].iter().take_while(|q| same(q)).count().max(1);
        quads[start..start + len].sort_by(|a, b| a.centre().x.total_cmp(&b.centre().x));
        start += len;
    }
}

/// The part of a picture inside four corners, set straight; one that is much higher than wide is laid on its side.
pub(crate) fn crop(picture: &RgbImage, quad: &Quad) -> RgbImage {
    let (width, height) = quad.size();
    let (width, height) = ((width as u32).max(1), (height as u32).max(1));
    let [a, b, c, d] = quad.0;
    let straight = RgbImage::from_fn(width, height, |x, y| {
        let across = x as f32 / width as f32;
        let place = a.towards(b, across).towards(d.towards(c, across), y as f32 / height as f32);
        sample(picture, place)
    });
    if height as f32 >= 1.5 * width as f32 { rotate270(&straight) } else { straight }
}

/// The colour at a place, between the four nearest pixels.
fn sample(picture: &RgbImage, place: Point) -> Rgb<u8> {
    let (right, bottom) = (picture.width().saturating_sub(1), picture.height().saturating_sub(1));
    let (x, y) = (place.x.clamp(0.0, right as f32), place.y.clamp(0.0, bottom as f32));
    let (left, top) = (x as u32, y as u32);
    let (part_x, part_y) = (x - left as f32, y - top as f32);
    let at = |x: u32, y: u32| picture.get_pixel(x.min(right), y.min(bottom));
    let corners = [at(left, top), at(left + 1, top), at(left, top + 1), at(left + 1, top + 1)];
    Rgb(std::array::from_fn(|i| {
        let [a, b, c, d] = corners.map(|p| f32::from(p[i]));
        let (upper, lower) = (a + part_x * (b - a), c + part_x * (d - c));
        (upper + part_y * (lower - upper)).round() as u8
    }))
}

/// The corners of the smallest convex figure around points, without those on its edges.
pub(crate) fn hull(mut points: Vec<Point>) -> Vec<Point> {
    points.sort_by(|a, b| a.x.total_cmp(&b.x).then(a.y.total_cmp(&b.y)));
    points.dedup();
    if points.len() < 3 {
        return points;
    }
    fn half(points: impl Iterator<Item = Point>) -> Vec<Point> {
        let mut out: Vec<Point> = Vec::new();
        for p in points {
            while let [.., a, b] = out[..]
                && b.minus(a).cross(p.minus(a)) <= 0.0
            {
                out.pop();
            }
            out.push(p);
        }
        // The last one begins the other half.
        out.pop();
        out
    }
    let mut out = half(points.iter().copied());
    out.extend(half(points.iter().rev().copied()));
    out
}

/// A rectangle at an angle.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rectangle {
    centre: Point,
    /// A unit vector along its first side; the other is at a right angle to it.
    along: Point,
    /// Half the lengths of the two sides.
    half: (f32, f32),
}

impl Rectangle {
    /// The smallest rectangle around a convex figure: one of its sides lies on one of the figure's. `None` for fewer than
    /// three corners.
    pub(crate) fn around(corners: &[Point]) -> Option<Rectangle> {
        if corners.len() < 3 {
            return None;
        }
        let ends = corners.iter().zip(corners.iter().cycle().skip(1));
        let rectangle = |(a, b): (&Point, &Point)| {
            let side = b.minus(*a);
            let along = Point { x: side.x / side.length(), y: side.y / side.length() };
            let across = Point { x: -along.y, y: along.x };
            let range = |axis: Point| {
                let places = corners.iter().map(|p| p.dot(axis));
                places.fold((f32::MAX, f32::MIN), |(low, high), v| (low.min(v), high.max(v)))
            };
            let ((left, right), (top, bottom)) = (range(along), range(across));
            let (u, v) = ((left + right) / 2.0, (top + bottom) / 2.0);
            let centre = Point { x: u * along.x + v * across.x, y: u * along.y + v * across.y };
            Rectangle { centre, along, half: ((right - left) / 2.0, (bottom - top) / 2.0) }
        };
        ends.map(rectangle).min_by(|a, b| a.area().total_cmp(&b.area()))
    }

    pub(crate) fn area(&self) -> f32 {
        4.0 * self.half.0 * self.half.1
    }

    pub(crate) fn perimeter(&self) -> f32 {
        4.0 * (self.half.0 + self.half.1)
    }

    pub(crate) fn least_side(&self) -> f32 {
        2.0 * self.half.0.min(self.half.1)
    }

    /// With every side moved out by a distance.
    pub(crate) fn grown(&self, by: f32) -> Rectangle {
        Rectangle { half: (self.half.0 + by, self.half.1 + by), ..*self }
    }

    /// Whether a point is inside or on its edge.
    pub(crate) fn holds(&self, point: Point) -> bool {
        let from = point.minus(self.centre);
        from.dot(self.along).abs() <= self.half.0 + 1e-3 && from.cross(self.along).abs() <= self.half.1 + 1e-3
    }

    pub(crate) fn corners(&self) -> Quad {
        let Point { x, y } = self.along;
        Quad::ordered([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)].map(|(u, v)| {
            let (u, v) = (u * self.half.0, v * self.half.1);
            Point { x: self.centre.x + u * x - v * y, y: self.centre.y + u * y + v * x }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(list: &[(f32, f32)]) -> Vec<Point> {
        list.iter().map(|&(x, y)| Point { x, y }).collect()
    }

    #[test]
    fn a_turned_rectangle_is_found_from_points_inside_it() {
        // A rectangle of sides 10 and 5 along (0.6, 0.8), with points on its edges and inside it.
        let corners = [(0.0, 0.0), (6.0, 8.0), (2.0, 11.0), (-4.0, 3.0)];
        let mut all = points(&corners);
        all.extend(points(&[(3.0, 4.0), (1.0, 5.0), (-2.0, 1.5)]));
        let hull = hull(all);
        assert_eq!(hull.len(), 4);
        let found = Rectangle::around(&hull).unwrap();
        assert!((found.area() - 50.0).abs() < 1e-3 && (found.perimeter() - 30.0).abs() < 1e-3);
        assert!(found.holds(Point { x: 1.0, y: 5.0 }) && !found.holds(Point { x: 5.0, y: 3.0 }));
        let want = points(&[(0.0, 0.0), (6.0, 8.0), (2.0, 11.0), (-4.0, 3.0)]);
        for p in found.corners().0 {
            assert!(want.iter().any(|w| w.minus(p).length() < 1e-3), "{p:?}");
        }
    }

    #[test]
    fn points_on_a_line_have_no_rectangle() {
        assert!(Rectangle::around(&hull(points(&[(0.0, 0.0), (1.0, 1.0), (2.0, 2.0)]))).is_none());
        assert!(Rectangle::around(&hull(points(&[(1.0, 1.0), (1.0, 1.0)]))).is_none());
    }

    #[test]
    fn rows_are_read_from_left_to_right() {
        let at = |x: f32, y: f32| {
            Quad(points(&[(x, y), (x + 40.0, y), (x + 40.0, y + 10.0), (x, y + 10.0)]).try_into().unwrap())
        };
        let mut quads = [at(50.0, 1.0), at(0.0, 30.0), at(0.0, 3.0), at(60.0, 28.0)];
        reading_order(&mut quads);
        assert_eq!(quads, [at(0.0, 3.0), at(50.0, 1.0), at(0.0, 30.0), at(60.0, 28.0)]);
    }

    #[test]
    fn a_crop_is_set_straight() {
        let picture = RgbImage::from_fn(20, 20, |x, y| Rgb([x as u8 * 10, y as u8 * 10, 0]));
        let corners = points(&[(10.0, 2.0), (16.0, 10.0), (12.0, 13.0), (6.0, 5.0)]);
        let out = crop(&picture, &Quad(corners.try_into().unwrap()));
        assert_eq!(out.dimensions(), (10, 5));
        assert_eq!(out.get_pixel(0, 0), &Rgb([100, 20, 0]));
        assert_eq!(out.get_pixel(5, 0), &Rgb([130, 60, 0]));
    }
}
