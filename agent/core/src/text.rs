//! Text that a person wrote, JSON or YAML, to a value. Deliberately not here: what it means.
//!
//! Stricter than what travels: a key that occurs twice is refused, because one of its two values
//! would be dropped silently.

use std::fmt;

use coracle_protocol::limits::MAX_DOCUMENT_BYTES;
use coracle_protocol::{Code, Refusal};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Largest text, in bytes: a document of the largest size with as much again in white space and
/// comments, twice over.
pub const MAX_TEXT_BYTES: usize = 4 * MAX_DOCUMENT_BYTES;

/// Reads JSON, or YAML where the text does not begin with `{` or `[`.
///
/// # Errors
/// One refusal: too large, malformed with line and column, or a key that occurs twice, with the path
/// of the object it is in.
pub fn parse(bytes: &[u8]) -> Result<Value, Refusal> {
    if bytes.len() > MAX_TEXT_BYTES {
        let message =
            format!("text of {} bytes; at most {MAX_TEXT_BYTES} are allowed", bytes.len());
        return Err(Refusal::whole(Code::TOO_LARGE, message));
    }
    let malformed = |message: String| Refusal::whole(Code::MALFORMED, message);
    let text = std::str::from_utf8(bytes)
        .map_err(|error| malformed(format!("not UTF-8 text: {error}")))?;
    let mut reading = Reading::default();
    let read = if text.trim_start().starts_with(['{', '[']) {
        json(text, &mut reading).map_err(|error| format!("not JSON: {error}"))
    } else {
        yaml(text, &mut reading)
    };
    read.map_err(|message| match reading.duplicate {
        Some((path, key)) => Refusal::new(
            path,
            Code::DUPLICATE_NAME,
            format!("key {key:?} occurs twice in one object; {message}"),
        ),
        None => malformed(message),
    })
}

fn json(text: &str, reading: &mut Reading) -> Result<Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = Node(reading).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

#[cfg(feature = "yaml")]
fn yaml(text: &str, reading: &mut Reading) -> Result<Value, String> {
    // Ends aliases of aliases, and too deep a nesting, in an error and not in gigabytes. YAML 1.2:
    // `no` and `on` are words.
    Node(reading)
        .deserialize(serde_norway::Deserializer::from_str(text))
        .map_err(|error| format!("not YAML: {error}"))
}

#[cfg(not(feature = "yaml"))]
fn yaml(_text: &str, _reading: &mut Reading) -> Result<Value, String> {
    Err("not JSON, and this program was built without YAML".into())
}

/// Where the reader is, and the first key found twice.
#[derive(Default)]
struct Reading {
    path: String,
    duplicate: Option<(String, String)>,
}

impl Reading {
    /// Reads what is at `step` below the present place.
    fn below<T, E>(
        &mut self,
        step: &str,
        read: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        let length = self.path.len();
        self.path.push('/');
        self.path.push_str(&step.replace('~', "~0").replace('/', "~1"));
        let result = read(self);
        self.path.truncate(length);
        result
    }
}

/// One value of any kind.
struct Node<'a>(&'a mut Reading);

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON has")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        let next = |list: &Vec<Value>, items: &mut A, reading: &mut Reading| {
            reading.below(&list.len().to_string(), |reading| items.next_element_seed(Node(reading)))
        };
        while let Some(item) = next(&list, &mut items, self.0)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                self.0.duplicate = Some((self.0.path.clone(), key));
                return Err(A::Error::custom("duplicate key"));
            }
            let value = self.0.below(&key, |reading| entries.next_value_seed(Node(reading)))?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(text: &str) -> (String, Code, String) {
        let Refusal { path, code, message } = parse(text.as_bytes()).unwrap_err();
        (path, code, message)
    }

    #[test]
    fn json_and_yaml_give_the_same_value() {
        let expected = json!({
            "schema": 1,
            "generation": 9007199254740991_u64,
            "list": ["a", true, null, -3, 1.5, "no", "1.27"],
            "map": { "x y": {}, "empty": [] },
            "text": "two\nlines\n",
        });
        assert_eq!(parse(expected.to_string().as_bytes()).unwrap(), expected);
        let yaml = "
# an order
schema: 1
generation: 9007199254740991
list: [a, true, null, -3, 1.5, no, '1.27']
map:
  x y: {}
  empty: []
text: |
  two
  lines
";
        assert_eq!(parse(yaml.as_bytes()).unwrap(), expected);
    }

    #[test]
    fn malformed_text_is_refused_with_its_place() {
        for text in
            ["{\"a\": 1,\n \"b\": }", "a: 1\nb: [1", "a: 1\n b: 2", "{\"a\": 1} x", "a: \"x"]
        {
            let (path, code, message) = refused(text);
            assert_eq!((path.as_str(), code), ("", Code::MALFORMED), "{text}");
            assert!(message.contains("line ") && message.contains("column "), "{message}");
        }
        for text in ["a: .nan", "{a: 1}", "a: 1\n---\nb: 2"] {
            assert_eq!(refused(text).1, Code::MALFORMED, "{text}");
        }
        assert_eq!(parse(&[b'a', 0xff]).unwrap_err().code, Code::MALFORMED);
    }

    #[test]
    fn a_key_that_occurs_twice_is_refused_with_its_place() {
        for text in [
            "{\"a\": [{}, {\"b/c\": {\"x\": 1, \"x\": 2}}]}",
            "a:\n- {}\n- b/c:\n    x: 1\n    x: 2\n",
        ] {
            let (path, code, message) = refused(text);
            assert_eq!((path.as_str(), code), ("/a/1/b~1c", Code::DUPLICATE_NAME), "{text}");
            assert!(message.contains("key \"x\" occurs twice"), "{message}");
            assert!(message.contains("line "), "{message}");
        }
    }

    #[test]
    fn what_would_grow_without_bound_is_refused() {
        assert_eq!(parse(&vec![b' '; MAX_TEXT_BYTES + 1]).unwrap_err().code, Code::TOO_LARGE);
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let below = format!("*a{}, ", level - 1).repeat(9);
            bomb += &format!("a{level}: &a{level} [{below}*a{}]\n", level - 1);
        }
        assert_eq!(refused(&bomb).1, Code::MALFORMED);
        for deep in ["[".repeat(100_000), format!("a: {}", "[".repeat(2_000)), "- ".repeat(1_000)] {
            assert_eq!(refused(&deep).1, Code::MALFORMED);
        }
    }
}
