//! JSON Patch (RFC 6902).

use serde_json::Value;

use super::{Error, Patched};

/// As in kube-apiserver.
const OPERATIONS_MAX: usize = 10_000;

/// Applies the operations in turn; all or none.
pub fn apply(object: &Value, body: &[u8]) -> Result<Patched, Error> {
    let bad = |e: &dyn std::fmt::Display| Error::BadRequest(format!("error decoding patch: {e}"));
    let operations: Value = serde_json::from_slice(body).map_err(|e| bad(&e))?;
    let Some(list) = operations.as_array() else {
        let found = match operations {
            Value::Object(_) => "object",
            Value::String(_) => "string",
            Value::Number(_) => "number",
            _ => "bool",
        };
        return Err(bad(&format!(
            "json: cannot unmarshal {found} into Go value of type []handlers.jsonPatchOp"
        )));
    };
    if list.len() > OPERATIONS_MAX {
        return Err(Error::TooLarge { allowed: OPERATIONS_MAX, found: list.len() });
    }
    let mut patched = object.clone();
    for operation in list {
        let operation: json_patch::PatchOperation =
            serde_json::from_value(operation.clone()).map_err(|e| Error::Unprocessable(e.to_string()))?;
        json_patch::patch(&mut patched, &[operation]).map_err(|e| Error::Unprocessable(e.to_string()))?;
    }
    Ok(Patched { object: patched, strict: Vec::new(), shown: None })
}
