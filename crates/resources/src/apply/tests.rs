use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::kind_of_resource;

fn request(manager: &'static str, subresource: &'static str) -> Request<'static> {
    let kind = kind_of_resource("apps", "v1", "deployments").unwrap();
    Request { kind, manager, subresource, now: Timestamp::UNIX_EPOCH }
}

fn deployment(replicas: i64) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]},
        }},
    })
}

fn owners(object: &Value, path: &str) -> Vec<String> {
    let mut wanted = Set::default();
    wanted.insert_dotted(path);
    let managed = Managed::of(object);
    let owns = |e: &Entry| !e.set.intersection(&wanted).is_empty();
    managed.entries.iter().filter(|(_, e)| owns(e)).map(|(i, _)| i.show()).collect()
}

#[test]
fn another_managers_field_is_a_conflict_until_forced() {
    let live = apply(None, &deployment(1), false, &request("a", "")).unwrap();
    let error = apply(Some(&live), &deployment(2), false, &request("b", "")).unwrap_err();
    assert_eq!(error.to_string(), r#"Apply failed with 1 conflict: conflict with "a": .spec.replicas"#);
    let forced = apply(Some(&live), &deployment(2), true, &request("b", "")).unwrap();
    assert_eq!(owners(&forced, "spec.replicas"), [r#""b""#]);
}

#[test]
fn a_field_left_out_goes_unless_shared() {
    let live = apply(None, &deployment(1), false, &request("a", "")).unwrap();
    let shared = apply(Some(&live), &deployment(1), false, &request("b", "")).unwrap();
    let mut less = deployment(1);
    less["spec"].as_object_mut().unwrap().remove("replicas");
    let kept = apply(Some(&shared), &less, false, &request("a", "")).unwrap();
    assert_eq!(kept["spec"]["replicas"], 1);
    assert_eq!(owners(&kept, "spec.replicas"), [r#""b""#]);
    let gone = apply(Some(&live), &less, false, &request("a", "")).unwrap();
    assert_eq!(gone["spec"].get("replicas"), None);
}

#[test]
fn a_scale_takes_the_field_from_the_applier() {
    let live = apply(None, &deployment(1), false, &request("a", "")).unwrap();
    let mut new = live.clone();
    new["spec"]["replicas"] = 3.into();
    update(Some(&live), &mut new, false, &request("kubectl", "scale")).unwrap();
    assert_eq!(owners(&new, "spec.replicas"), [r#""kubectl" with subresource "scale" using apps/v1"#]);
}

#[test]
fn status_is_owned_through_status_only() {
    let live = apply(None, &deployment(1), false, &request("a", "")).unwrap();
    let mut new = live.clone();
    new["status"] = json!({"replicas": 1});
    let mut through_status = new.clone();
    update(Some(&live), &mut new, false, &request("b", "")).unwrap();
    assert_eq!(new["metadata"]["managedFields"], live["metadata"]["managedFields"]);
    update(Some(&live), &mut through_status, false, &request("b", "status")).unwrap();
    assert_eq!(owners(&through_status, "status.replicas").len(), 1);
}

#[test]
fn updaters_are_capped() {
    let mut live = deployment(1);
    update(None, &mut live, false, &request("first", "")).unwrap();
    for index in 0..20 {
        let mut new = live.clone();
        new["metadata"]["labels"][format!("l{index}")] = "x".into();
        let name: &'static str = Box::leak(format!("m{index:02}").into_boxed_str());
        update(Some(&live), &mut new, false, &request(name, "")).unwrap();
        live = new;
    }
    let managed = Managed::of(&live);
    assert_eq!(managed.entries.len(), UPDATE_MANAGERS_MAX);
    assert!(managed.entries.keys().any(|i| i.manager == "ancient-changes"));
}

#[test]
fn what_is_no_deployment_is_named() {
    let mut config = deployment(1);
    config["spec"]["foo"] = 1.into();
    let error = apply(None, &config, false, &request("a", "")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "failed to create typed patch object (/x; apps/v1, Kind=Deployment): .spec.foo: field not declared in schema"
    );
    let mut config = deployment(1);
    let container = config["spec"]["template"]["spec"]["containers"][0].clone();
    config["spec"]["template"]["spec"]["containers"].as_array_mut().unwrap().push(container);
    let error = apply(None, &config, false, &request("a", "")).unwrap_err();
    assert!(error.to_string().ends_with(r#"duplicate entries for key [name="c"]"#), "{error}");
}

fn paths() -> impl Strategy<Value = Set> {
    let element = prop_oneof![
        "[a-c]".prop_map(Element::Field),
        "[a-c]".prop_map(|v| Element::Key(vec![("name".to_owned(), v.into())])),
        (0_i64..3).prop_map(|v| Element::Value(v.into())),
    ];
    prop::collection::vec(prop::collection::vec(element, 1..4), 0..8).prop_map(|paths| {
        let mut set = Set::default();
        paths.iter().for_each(|p| set.insert(p));
        set
    })
}

proptest! {
    #[test]
    fn sets_read_what_they_write(set in paths()) {
        prop_assert_eq!(Set::decode(&set.encode()).unwrap(), set);
    }

    #[test]
    fn set_algebra_holds(a in paths(), b in paths()) {
        prop_assert_eq!(a.union(&b), b.union(&a));
        prop_assert_eq!(a.intersection(&b), b.intersection(&a));
        prop_assert!(a.difference(&b).intersection(&b).is_empty());
        prop_assert_eq!(a.difference(&b).union(&a.intersection(&b)).paths().len(), a.paths().len());
    }
}
