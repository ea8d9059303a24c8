//! Text that a program or a stranger wrote, made fit to be shown in an event, a log or a terminal.

/// `text` on one line, without what moves a cursor, changes a colour or turns the direction round, and no longer than
/// `chars_max` characters.
pub(crate) fn shown(text: &str, chars_max: usize) -> String {
    let mut out = String::new();
    let mut count = 0;
    for char in text.trim().chars() {
        if is_hidden(char) {
            continue;
        }
        if count == chars_max {
            out.push('…');
            break;
        }
        out.push(if char.is_control() || char.is_whitespace() { ' ' } else { char });
        count += 1;
    }
    out.truncate(out.trim_end().len());
    out
}

/// Zero width and direction (Unicode's general category Cf, as far as it is used to deceive).
fn is_hidden(char: char) -> bool {
    matches!(char, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_plain_text_comes_through() {
        assert_eq!(shown("  sorry,\r\n\x1b[31mred\x1b[0m\u{202e}abc\0 ", 100), "sorry,   [31mred [0mabc");
        assert_eq!(shown("ünïcode", 100), "ünïcode");
        assert_eq!(shown(&"x".repeat(50), 10), format!("{}…", "x".repeat(10)));
        assert_eq!(shown("exactly", 7), "exactly");
    }
}
