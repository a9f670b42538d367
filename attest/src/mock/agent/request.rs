//! The JSON of a request, by dstack's rules. [dstack `ra-rpc/src/rocket_helper.rs`]

use std::borrow::Cow;

use bytes::Bytes;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request};
use serde_json::{Map, Value};

/// The request's fields as JSON, or the text of a 400.
pub(super) fn json(request: &Request<Bytes>) -> Result<Cow<'_, [u8]>, String> {
    let query = request.uri().query().unwrap_or_default();
    match *request.method() {
        Method::GET => Ok(from_query(query).to_string().into_bytes().into()),
        Method::POST if has_json_type(request) || asks_for_json(query) => {
            Ok(request.body().as_ref().into())
        }
        // dstack reads any other body as protobuf, which JSON is not.
        Method::POST => Err("failed to decode Protobuf message".to_owned()),
        ref other => Err(format!("Method not allowed: {other}")),
    }
}

fn has_json_type(request: &Request<Bytes>) -> bool {
    let value = request.headers().get(CONTENT_TYPE);
    let value = value.and_then(|value| value.to_str().ok());
    let essence = value.and_then(|value| value.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

/// Whether the query has `json`, `json=1` or `json=true`.
fn asks_for_json(query: &str) -> bool {
    let mut pairs = url::form_urlencoded::parse(query.as_bytes());
    pairs.any(|(name, value)| name == "json" && matches!(&*value, "" | "1" | "true"))
}

/// The fields of a GET: `name=value`, and `alt_names[]=value` once for each name.
fn from_query(query: &str) -> Value {
    let mut fields = Map::new();
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        if let Some((list, _)) = name.split_once('[') {
            let list = fields
                .entry(list)
                .or_insert_with(|| Vec::<Value>::new().into());
            if let Value::Array(list) = list {
                list.push(value.into());
            }
            continue;
        }
        let value = match (&*name, serde_json::from_str::<Value>(&value)) {
            // The other fields are text, even if it reads as a number.
            ("not_before" | "not_after", Ok(number @ Value::Number(_))) => number,
            (name, Ok(flag @ Value::Bool(_))) if is_flag(name) => flag,
            _ => value.into(),
        };
        fields.insert(name.into_owned(), value);
    }
    fields.into()
}

fn is_flag(name: &str) -> bool {
    name.starts_with("usage_") || name == "with_app_info"
}
