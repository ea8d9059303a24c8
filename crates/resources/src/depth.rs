//! How deep a value is. Much walks a value by recursion (writing, comparing, dropping it), so nothing may become deeper
//! than a stack is.

use serde_json::Value;

/// Levels of maps and lists in an object. What is stored is read again by a parser that takes 128.
pub const DEPTH_MAX: usize = 100;

/// The levels of maps and lists in a value (0 for a scalar), and how many values it holds, itself included. Needs no
/// more stack for a deep value than for a flat one.
pub fn measure(value: &Value) -> (usize, usize) {
    let (mut deepest, mut count) = (0, 0);
    let mut open = vec![(value, 0)];
    while let Some((value, above)) = open.pop() {
        count += 1;
        match value {
            Value::Array(items) => {
                deepest = deepest.max(above + 1);
                open.extend(items.iter().map(|item| (item, above + 1)));
            }
            Value::Object(map) => {
                deepest = deepest.max(above + 1);
                open.extend(map.values().map(|item| (item, above + 1)));
            }
            _ => {}
        }
    }
    (deepest, count)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn levels_and_values_are_counted() {
        assert_eq!(measure(&json!(1)), (0, 1));
        assert_eq!(measure(&json!({})), (1, 1));
        assert_eq!(measure(&json!({"a": [1, {"b": 2}], "c": 3})), (3, 6));
    }
}
