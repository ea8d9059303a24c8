//! Quantities of the API's types as whole numbers, rounded up as kubelet rounds them.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

fn parse(quantity: &Quantity) -> Option<resources::quantity::Quantity> {
    quantity.0.parse().ok()
}

/// Thousandths: `100m` → 100, `2` → 2000. `None` when it is no quantity.
pub fn milli(quantity: &Quantity) -> Option<i64> {
    parse(quantity).map(|quantity| quantity.milli())
}

/// The whole value: `64Mi` → 67108864.
pub fn value(quantity: &Quantity) -> Option<i64> {
    parse(quantity).map(|quantity| quantity.value())
}
