//! Accepts JSON values in forms that Go's reader takes and ours does not, and rejects the reverse:
//! line ends within Base64, as many encoders produce them, and integers as strings, which follow
//! JSON's number syntax.

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};
use serde_json::Value;
use tonic::Status;

use crate::status;

/// No 64-bit integer has more digits.
const DIGITS_MAX: usize = 20;

/// Whether a string begins with a plus sign: perhaps a number, where JSON does not allow it.
pub(super) fn has_sign(json: &[u8]) -> bool {
    json.windows(2).any(|bytes| bytes == b"\"+")
}

/// Rewrites values into the forms that our reader takes; `None` if nothing changes, or if this is
/// no JSON.
///
/// # Errors
/// If a number has a plus sign.
pub(super) fn plain(message: &MessageDescriptor, json: &[u8]) -> Result<Option<Value>, Status> {
    let Ok(mut value) = serde_json::from_slice(json) else { return Ok(None) };
    let mut has_changed = false;
    let mut open = vec![(Kind::Message(message.clone()), &mut value)];
    while let Some((kind, value)) = open.pop() {
        match (kind, value) {
            (Kind::Message(message), Value::Object(fields)) => {
                for (name, value) in fields {
                    let named = message.get_field_by_json_name(name);
                    if let Some(field) = named.or_else(|| message.get_field_by_name(name)) {
                        open_field(&field, value, &mut open);
                    }
                }
            }
            (kind, Value::Array(items)) => {
                open.extend(items.iter_mut().map(|item| (kind.clone(), item)));
            }
            (Kind::Bytes, Value::String(text)) if text.contains(['\r', '\n']) => {
                text.retain(|letter| !matches!(letter, '\r' | '\n'));
                has_changed = true;
            }
            (kind, Value::String(text)) if is_integer(&kind) => {
                if text.starts_with('+') {
                    return Err(status::no_message(format!("invalid integer: {text:?}")));
                }
                if let Some(digits) = digits(text) {
                    *text = digits;
                    has_changed = true;
                }
            }
            _ => {}
        }
    }
    Ok(has_changed.then_some(value))
}

/// Queues the values of a field for inspection.
fn open_field<'a>(
    field: &FieldDescriptor,
    value: &'a mut Value,
    open: &mut Vec<(Kind, &'a mut Value)>,
) {
    match field.kind() {
        Kind::Message(entry) if field.is_map() => {
            let kind = entry.map_entry_value_field().kind();
            let values = value.as_object_mut().into_iter().flat_map(|object| object.values_mut());
            open.extend(values.map(|value| (kind.clone(), value)));
        }
        kind => open.push((kind, value)),
    }
}

fn is_integer(kind: &Kind) -> bool {
    matches!(
        kind,
        Kind::Int32
            | Kind::Int64
            | Kind::Uint32
            | Kind::Uint64
            | Kind::Sint32
            | Kind::Sint64
            | Kind::Fixed32
            | Kind::Fixed64
            | Kind::Sfixed32
            | Kind::Sfixed64
    )
}

/// Digits of a whole number written with a decimal point or an exponent; `None` for any other text.
fn digits(text: &str) -> Option<String> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (sign, mantissa) = match mantissa.strip_prefix('-') {
        Some(mantissa) => ("-", mantissa),
        None => ("", mantissa),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, "0"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if text.len() == sign.len() + whole.len() || !is_number(whole) || !is_number(fraction) {
        return None;
    }
    let point = i64::try_from(whole.len()).ok()?.checked_add(exponent.parse().ok()?)?;
    let digits = [whole, fraction].concat();
    let point = usize::try_from(point).ok().filter(|&point| point <= DIGITS_MAX)?;
    let (before, behind) = digits.split_at(point.min(digits.len()));
    let is_whole = behind.bytes().all(|digit| digit == b'0');
    is_whole.then(|| format!("{sign}{before:0<point$}"))
}
