//! The JSON Schema of pipeline files, from what the kinds say of their keys. For editors, which complete and check with it.
//!
//! It allows what only imp-flow can judge: a table without `kind` may change a stage of the file that `extends` names, and any value
//! may be a variable, `${NAME}`.

use imp_stages::contract::{input::Input, keys::Key};
use serde_json::{Map, Value, json};

use super::print::print;

/// What a kind of stage takes.
pub(crate) struct KindKeys {
    pub(crate) kind: &'static str,
    pub(crate) about: &'static str,
    pub(crate) inputs: &'static [Input],
    pub(crate) keys: Vec<Key>,
}

/// Prints the schema.
pub(crate) fn schema(kinds: &[KindKeys], runtime: &[Key]) {
    print(&format!("{:#}", of(kinds, runtime)));
}

fn of(kinds: &[KindKeys], runtime: &[Key]) -> Value {
    let names: Vec<Value> = kinds.iter().map(|kind| json!({"const": kind.kind, "description": kind.about})).collect();
    let rules: Vec<Value> = kinds.iter().map(|kind| rule(kind, runtime)).collect();
    let any = json!({"type": "object"});
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A pipeline of imp-flow",
        "type": "object",
        "properties": {
            "name": {"type": "string", "description": "Its name, and that of its folder below artifacts/."},
            "extends": {"type": "string", "description": "A pipeline file that this one changes, relative to its folder."},
            "seed": {"type": "integer", "minimum": 0, "description": "The seed of all stages that have none of their own."},
            "vars": {"type": "object", "description": "Values that stand for ${NAME} below."},
            "sweep": {"type": "object", "description": "Keys with several values each, as in \"stages.lora.learning_rate\" = [1e-4, 2e-4]."},
            "stages": {
                "type": "object",
                "additionalProperties": {
                    "type": "object",
                    "properties": {"kind": {"oneOf": names}},
                    "allOf": rules,
                },
            },
        },
        "patternProperties": {"^sweep\\.": any},
        "additionalProperties": false,
    })
}

/// What holds for the stages of one kind.
fn rule(kind: &KindKeys, runtime: &[Key]) -> Value {
    let mut properties = table(&kind.keys);
    properties.insert("kind".into(), json!({}));
    properties.insert("seed".into(), value("integer", "The seed of this stage.", None));
    let runtime = json!({"type": "object", "properties": table(runtime), "additionalProperties": false,
        "description": "How it runs. None of it changes the result."});
    properties.insert("runtime".into(), runtime);
    for input in kind.inputs {
        let one = json!({"type": "string"});
        let many = json!({"type": "array", "items": {"type": "string"}});
        let shape = if input.many { json!({"anyOf": [one, many]}) } else { one };
        properties.insert(input.name.into(), described(shape, input.about));
    }
    json!({
        "if": {"required": ["kind"], "properties": {"kind": {"const": kind.kind}}},
        "then": {"properties": properties, "additionalProperties": false},
    })
}

/// The properties of a table. Those of a table in it have its name before theirs.
fn table(keys: &[Key]) -> Map<String, Value> {
    let mut properties = Map::new();
    for key in keys {
        match key.name.split_once('.') {
            None => drop(properties.insert(key.name.clone(), value(&key.value, &key.about, key.default.as_deref()))),
            Some((outer, name)) => {
                if let Some(below) = properties.get_mut(outer).and_then(|outer| outer.get_mut("properties")) {
                    below[name] = value(&key.value, &key.about, key.default.as_deref());
                }
            }
        }
    }
    properties
}

/// A value whose type is given in the words of the reference.
fn value(words: &str, about: &str, default: Option<&str>) -> Value {
    let shape = match words {
        "integer" => json!({"type": "integer"}),
        "number" => json!({"type": "number"}),
        "true or false" => json!({"type": "boolean"}),
        "list of strings" => json!({"type": "array", "items": {"type": "string"}}),
        "list of numbers" => json!({"type": "array", "items": {"type": "number"}}),
        "a map" => return described(json!({"type": "object"}), about),
        "table" => {
            let table = json!({"type": "object", "properties": {}, "additionalProperties": false});
            return described(table, about);
        }
        choices if choices.starts_with('"') => {
            let choices: Vec<&str> = choices.split(", ").map(|choice| choice.trim_matches('"')).collect();
            json!({"enum": choices})
        }
        // Texts, and sizes such as "16GB".
        _ => json!({"type": ["string", "integer"]}),
    };
    let mut value = described(json!({"anyOf": [shape, {"type": "string", "pattern": "\\$\\{"}]}), about);
    if let Some(default) = default.and_then(|default| serde_json::from_str::<Value>(default).ok()) {
        value["default"] = default;
    }
    value
}

fn described(mut shape: Value, about: &str) -> Value {
    shape["description"] = about.into();
    shape
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, words: &str, default: Option<&str>) -> Key {
        Key {
            name: name.into(),
            value: words.into(),
            default: default.map(Into::into),
            required: false,
            about: "about".into(),
        }
    }

    #[test]
    fn each_kind_has_its_own_keys() {
        const INPUTS: &[Input] = &[Input::list("data", "records")];
        let keys = vec![
            key("epochs", "number", Some("2.0")),
            key("lora", "table", None),
            key("lora.rank", "integer", Some("256")),
            key("mode", "\"lora\", \"full\"", Some("\"lora\"")),
        ];
        let schema = of(
            &[KindKeys { kind: "finetune", about: "trains", inputs: INPUTS, keys }],
            &[key("cpus", "integer", None)],
        );
        let then = &schema["properties"]["stages"]["additionalProperties"]["allOf"][0]["then"];
        let of_kind = &then["properties"];
        assert_eq!(then["additionalProperties"], false);
        assert_eq!(of_kind["epochs"]["default"], 2.0);
        assert_eq!(of_kind["epochs"]["anyOf"][0], json!({"type": "number"}));
        assert_eq!(of_kind["lora"]["properties"]["rank"]["default"], 256);
        assert_eq!(of_kind["mode"]["anyOf"][0], json!({"enum": ["lora", "full"]}));
        assert_eq!(of_kind["data"]["anyOf"][1]["type"], "array");
        assert_eq!(of_kind["runtime"]["properties"]["cpus"]["description"], "about");
    }
}
