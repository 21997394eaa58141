//! From scores to text.

/// What the scores `[steps, classes]` spell: the best class of each step, repetitions and blanks (class 0) dropped; and
/// the mean score of what is kept. The class after the last character is the space.
pub(crate) fn decode(scores: &[f32], classes: usize, characters: &[String]) -> (String, f32) {
    let (mut text, mut sum, mut count, mut last) = (String::new(), 0.0, 0, 0);
    for step in scores.chunks_exact(classes) {
        let (best, score) = step
            .iter()
            .copied()
            .enumerate()
            .fold((0, f32::MIN), |best, this| if this.1 > best.1 { this } else { best });
        if best != 0 && best != last {
            text.push_str(characters.get(best - 1).map_or(" ", String::as_str));
            sum += score;
            count += 1;
        }
        last = best;
    }
    (text, if count == 0 { 0.0 } else { sum / count as f32 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetitions_are_one_character_unless_a_blank_is_between() {
        let characters = ["a".to_string(), "b".to_string()];
        let path = [1, 1, 0, 1, 2, 2, 3, 2];
        let scores: Vec<f32> =
            path.iter().flat_map(|&p| (0..4).map(move |c| if c == p { 0.5 } else { 0.1 })).collect();
        assert_eq!(decode(&scores, 4, &characters), ("aab b".to_string(), 0.5));
        assert_eq!(decode(&[], 4, &characters), (String::new(), 0.0));
    }
}
