//! The description of the internal port has what the port has, neither more nor less.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use serde_json::Value;

/// The routes as they are written in a source file: path and method.
fn routes(source: &str) -> BTreeSet<(String, String)> {
    let routes = source.split(".route(\"").skip(1).map(|rest| {
        let (path, handler) = rest.split_once("\", ").unwrap();
        (path.to_owned(), handler.split_once('(').unwrap().0.to_owned())
    });
    routes.collect()
}

#[test]
fn every_internal_route_is_described_and_every_description_has_its_route() {
    let description: Value = serde_json::from_str(include_str!("../../openapi.json")).unwrap();
    let described: BTreeSet<_> = description["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| item.as_object().unwrap().keys().map(|method| (path.clone(), method.clone())))
        .filter(|(_, method)| matches!(method.as_str(), "get" | "put" | "post" | "delete" | "patch"))
        .collect();
    let internal = routes(include_str!("../internal.rs"));
    assert!(internal.len() >= 8, "the routes are written in another way: {internal:?}");
    let missing: Vec<_> = internal.difference(&described).collect();
    assert!(missing.is_empty(), "not in openapi.json: {missing:?}");

    // Upgrades answer any method by themselves; they are described as what they are, a GET.
    let public = routes(include_str!("../public.rs")).into_iter();
    let mut public: BTreeSet<_> = public.map(|(path, method)| (path, method.replace("any", "get"))).collect();
    // The page's files are routed by their names, which change with every build; the page itself is always there.
    public.insert(("/".to_owned(), "get".to_owned()));
    let stale: Vec<_> = described.iter().filter(|route| !internal.contains(route) && !public.contains(route)).collect();
    assert!(stale.is_empty(), "in openapi.json, but nowhere else: {stale:?}");
}
