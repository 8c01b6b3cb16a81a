//! Substitutes `"${name}"` by the values in `[vars]`. Independent of what the values mean.

use super::{
    diagnostic::{Diagnostic, Diagnostics},
    value::{Node, Table, Value},
};

/// Replaces `${name}` in `node` by the values of `vars`.
///
/// A string that consists of a single reference becomes the value itself, with its type. In other strings, references are replaced
/// by the text of the value.
pub(super) fn substitute(node: &mut Node, vars: &Table, problems: &mut Diagnostics) {
    match &mut node.value {
        Value::String(text) if text.contains("${") => match expand(text, vars) {
            Ok(value) => node.value = value,
            Err(Unknown(name)) => {
                let known = vars.0.iter().map(|entry| entry.key.as_str());
                problems.push(
                    Diagnostic::new(format!("no variable `{name}`"), Some(node.span.clone()))
                        .help("define it under [vars]")
                        .suggest(&name, known),
                );
            }
        },
        Value::Array(items) => items.iter_mut().for_each(|item| substitute(item, vars, problems)),
        Value::Table(table) => table.0.iter_mut().for_each(|entry| substitute(&mut entry.node, vars, problems)),
        _ => {}
    }
}

struct Unknown(String);

fn expand(text: &str, vars: &Table) -> Result<Value, Unknown> {
    let lookup = |name: &str| vars.get(name).map(|entry| &entry.node.value).ok_or_else(|| Unknown(name.into()));
    if let Some(name) = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'))
        && !name.contains('}')
    {
        return lookup(name).cloned();
    }
    let (mut done, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once("${") {
        let Some((name, after)) = after.split_once('}') else { break };
        done.push_str(before);
        match lookup(name)? {
            Value::String(value) => done.push_str(value),
            Value::Integer(value) => done.push_str(&value.to_string()),
            Value::Float(value) => done.push_str(&value.to_string()),
            Value::Boolean(value) => done.push_str(&value.to_string()),
            Value::Array(_) | Value::Table(_) => return Err(Unknown(name.into())),
        }
        rest = after;
    }
    done.push_str(rest);
    Ok(Value::String(done))
}
