//! Acting as somebody else: the `Impersonate-…` headers, which `kubectl --as` sends.

use http::HeaderMap;
use resources::status::Status;

use crate::access::{self, Action};
use crate::identity::Identity;

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// Who asks, after what the headers say. Headers that cannot be followed are an error: a request must never be
/// answered with more rights than it asked for.
pub(crate) fn effective(identity: Identity, headers: &HeaderMap) -> Result<Identity, Status> {
    let values = |name: &str| -> Vec<String> {
        let all = headers.get_all(name).into_iter();
        all.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
    };
    let groups = values(GROUP);
    let more = headers.keys().any(|name| name == UID || name.as_str().starts_with(EXTRA));
    let Some(user) = values(USER).into_iter().next().filter(|user| !user.is_empty()) else {
        return match groups.is_empty() && !more && !headers.contains_key(USER) {
            true => Ok(identity),
            false => Err(Status::bad_request(format!("requested {groups:?} without impersonating a user"))),
        };
    };
    let account = user.strip_prefix(SERVICE_ACCOUNT).and_then(|rest| rest.split_once(':'));
    match account {
        Some((namespace, name)) => ask(&identity, "serviceaccounts", namespace, name)?,
        None => ask(&identity, "users", "", &user)?,
    }
    for group in &groups {
        ask(&identity, "groups", "", group)?;
    }
    if more {
        return Err(Status::bad_request("impersonating a uid or extra fields is not supported"));
    }
    if user == "system:anonymous" {
        return Ok(Identity::anonymous());
    }
    let own = match account {
        Some((namespace, _)) if groups.is_empty() => {
            vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")]
        }
        _ => groups,
    };
    Ok(Identity::new(user, own))
}

fn ask(identity: &Identity, resource: &str, namespace: &str, name: &str) -> Result<(), Status> {
    let action = Action { verb: "impersonate", group: "", resource, subresource: "", namespace, name };
    if access::allowed(identity, &action) { Ok(()) } else { Err(access::forbidden(identity, &action)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut all = HeaderMap::new();
        for (name, value) in pairs {
            all.append(*name, value.parse().unwrap());
        }
        all
    }

    #[test]
    fn an_administrator_acts_as_others() {
        let of = |pairs: &[(&'static str, &str)]| effective(Identity::admin(), &headers(pairs));
        assert_eq!(of(&[]).unwrap(), Identity::admin());
        assert_eq!(of(&[(USER, "bob")]).unwrap(), Identity::new("bob", Vec::<String>::new()));
        let grouped = of(&[(USER, "bob"), (GROUP, "dev"), (GROUP, "ops")]).unwrap();
        assert_eq!(grouped.groups, ["dev", "ops", "system:authenticated"]);
        let robot = of(&[(USER, "system:serviceaccount:shop:robot")]).unwrap();
        assert!(robot.is_in("system:serviceaccounts:shop") && !robot.is_in("system:masters"));
        assert_eq!(of(&[(USER, "system:anonymous")]).unwrap(), Identity::anonymous());
    }

    #[test]
    fn what_cannot_be_followed_is_refused() {
        let alice = Identity::new("alice", ["dev"]);
        let refused = effective(alice, &headers(&[(USER, "admin"), (GROUP, "system:masters")])).unwrap_err();
        assert_eq!(refused.code, 403);
        for pairs in [[(GROUP, "dev")], [(UID, "1")], [(USER, "")]] {
            assert_eq!(effective(Identity::admin(), &headers(&pairs)).unwrap_err().code, 400);
        }
        let extra = headers(&[(USER, "bob"), ("impersonate-extra-scopes", "view")]);
        assert_eq!(effective(Identity::admin(), &extra).unwrap_err().code, 400);
    }
}
