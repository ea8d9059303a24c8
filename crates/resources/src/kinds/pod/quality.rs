//! The quality of service class: who is stopped first when memory runs short.

use serde_json::Value;

use crate::kinds::tree;
use crate::quantity::Quantity;

const COMPUTE: [&str; 2] = ["cpu", "memory"];

fn amount(list: &Value, name: &str) -> Option<Quantity> {
    let quantity = tree::get(list, name).as_str()?.parse::<Quantity>().ok()?;
    (quantity.signum() > 0).then_some(quantity)
}

/// Guaranteed when every container limits cpu and memory and requests as much; BestEffort when nobody asks for
/// anything; else Burstable.
pub fn class(pod: &Value) -> &'static str {
    let whole = tree::at(pod, "/spec/resources");
    if COMPUTE.iter().any(|name| {
        amount(tree::get(whole, "requests"), name).is_some()
            || amount(tree::get(whole, "limits"), name).is_some()
    }) {
        return one(std::iter::once(whole));
    }
    let containers =
        tree::list(pod, "/spec/containers").iter().chain(tree::list(pod, "/spec/initContainers"));
    one(containers.map(|c| tree::get(c, "resources")))
}

fn one<'a>(all: impl Iterator<Item = &'a Value>) -> &'static str {
    let (mut asked, mut guaranteed) = (false, true);
    let mut totals: [(Option<Quantity>, Option<Quantity>); 2] = [(None, None), (None, None)];
    for resources in all {
        for (name, total) in COMPUTE.iter().zip(totals.iter_mut()) {
            let request = amount(tree::get(resources, "requests"), name);
            let limit = amount(tree::get(resources, "limits"), name);
            asked |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some();
            add(&mut total.0, request);
            add(&mut total.1, limit);
        }
    }
    if !asked {
        "BestEffort"
    } else if guaranteed && totals.iter().all(|(request, limit)| request.is_none() || request == limit) {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

fn add(total: &mut Option<Quantity>, more: Option<Quantity>) {
    *total = match (total.take(), more) {
        (Some(total), Some(more)) => Some(total.plus(&more)),
        (total, more) => total.or(more),
    };
}
