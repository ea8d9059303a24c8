//! The way of every request: who asks, limits, authorisation, route, measurement.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Request, State};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use lifecycle::bound::{Bound, Permit};
use resources::kind::Subresource;
use resources::status::Status;
use tokio_util::sync::CancellationToken;

use crate::access::{self, Action};
use crate::identity::Identity;
use crate::negotiate::{self, Accepted, BodyFormat};
use crate::path::{self, Place, Route};
use crate::query::{Query, WriteOptions};
use crate::{Api, Limits, create, delete, discovery, health, impersonate, list, measure, openapi, patch};
use crate::{pods, read, respond, reviews, scale, update, watch};

/// The listener is about to close: what runs long ends now. An extension of requests.
#[derive(Clone, Debug)]
pub(crate) struct Draining(pub CancellationToken);

/// How much may run at a time.
pub(crate) struct Bounds {
    in_flight: Arc<Bound>,
    long_running: Arc<Bound>,
}

impl Bounds {
    pub(crate) fn new(limits: &Limits) -> Self {
        Bounds {
            in_flight: Bound::new("apiserver_requests_in_flight", limits.in_flight as u64),
            long_running: Bound::new("apiserver_requests_long_running", limits.long_running as u64),
        }
    }
}

pub(crate) fn router(api: Arc<Api>) -> axum::Router {
    axum::Router::new().fallback(handle).with_state(api)
}

/// One request on its way through a verb's module.
pub(crate) struct Call {
    pub identity: Identity,
    pub headers: HeaderMap,
    pub query: Query,
    pub accepted: Accepted,
    pub draining: Option<CancellationToken>,
    /// What the writer is told although the request succeeds.
    pub warnings: Vec<String>,
}

impl Call {
    pub(crate) fn user_agent(&self) -> Option<&str> {
        self.headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok())
    }

    pub(crate) fn write_options(&self, kind: &str) -> Result<WriteOptions, Status> {
        WriteOptions::parse(&self.query, kind, false, self.user_agent())
    }

    pub(crate) fn body_format(&self) -> Result<BodyFormat, Status> {
        negotiate::body_format(&self.headers)
    }
}

async fn handle(State(api): State<Arc<Api>>, request: Request) -> Response<Body> {
    let started = Instant::now();
    let route = path::route(request.uri().path());
    let method = request.method().clone();
    let verb = verb_of(&method, &route, request.uri().query());
    let long_running = is_long_running(verb, &route, request.uri().query());
    let bound = if long_running { &api.bounds.long_running } else { &api.bounds.in_flight };
    let permit = bound.acquire(1);
    let labels = measure::Labels::new(verb, &route);
    let mut response = match permit {
        None => respond::failure(&Status::too_many_requests("Too many requests, please try again later.", 1)),
        Some(permit) if long_running => {
            let response = dispatch(api.clone(), request, route, verb).await;
            hold(response, permit)
        }
        Some(_permit) => {
            let limit = Duration::from_secs(api.limits.request_seconds);
            match tokio::time::timeout(limit, dispatch(api.clone(), request, route, verb)).await {
                Ok(response) => response,
                Err(_) => {
                    respond::failure(&Status::timeout("request did not complete within the allotted time", 0))
                }
            }
        }
    };
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    measure::request(labels, response.status(), started.elapsed(), long_running);
    response
}

/// The permit of a stream lasts as long as its body.
fn hold(response: Response<Body>, permit: Permit) -> Response<Body> {
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _held = &permit;
            frame
        }))
    })
}

/// The API verb of a request.
fn verb_of(method: &Method, route: &Route, query: Option<&str>) -> &'static str {
    let Route::Objects(place) = route else {
        return match *method {
            Method::GET => "get",
            Method::HEAD => "head",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "other",
        };
    };
    let named = !place.name.is_empty();
    let watching = place.watch
        || query.is_some_and(|query| {
            query.split('&').any(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                key == "watch" && !(value.eq_ignore_ascii_case("false") || value == "0")
            })
        });
    match *method {
        Method::GET | Method::HEAD if place.subresource.is_some() => "get",
        Method::GET | Method::HEAD if watching => "watch",
        Method::GET | Method::HEAD if named => "get",
        Method::GET | Method::HEAD => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if named => "delete",
        Method::DELETE => "deletecollection",
        _ => "other",
    }
}

fn is_long_running(verb: &str, route: &Route, query: Option<&str>) -> bool {
    let Route::Objects(place) = route else { return false };
    match place.subresource {
        None => verb == "watch",
        Some(Subresource::Log) => query.is_some_and(|query| query.contains("follow=")),
        Some(Subresource::Attach | Subresource::Exec | Subresource::PortForward | Subresource::Proxy) => true,
        Some(_) => false,
    }
}

async fn dispatch(api: Arc<Api>, request: Request, route: Route, verb: &'static str) -> Response<Body> {
    match answer(&api, request, route, verb).await {
        Ok(response) => response,
        Err(status) => respond::failure(&status),
    }
}

async fn answer(
    api: &Arc<Api>,
    mut request: Request,
    route: Route,
    verb: &'static str,
) -> Result<Response<Body>, Status> {
    let identity = request.extensions_mut().remove::<Identity>().unwrap_or_else(Identity::anonymous);
    let identity = impersonate::effective(identity, request.headers())?;
    match route {
        Route::Objects(place) => objects(api, request, place, verb, identity).await,
        Route::Review(review) => {
            let action = Action {
                verb,
                group: review.group,
                resource: review.plural,
                subresource: "",
                namespace: "",
                name: "",
            };
            authorise(&identity, &action)?;
            if request.method() != Method::POST {
                return Err(Status::method_not_allowed());
            }
            let mut call = call_of(&request, identity)?;
            let body = body(api, request).await?;
            reviews::answer(api, review, &mut call, &body)
        }
        other => {
            let path = request.uri().path().to_owned();
            if !access::path_allowed(&identity, &path) {
                return Err(if identity.is_in("system:unauthenticated") && path == "/metrics" {
                    Status::unauthorized()
                } else {
                    access::path_forbidden(&identity, verb, &path)
                });
            }
            if matches!(other, Route::Unknown) {
                return discovery::nothing(&path);
            }
            if !matches!(*request.method(), Method::GET | Method::HEAD) {
                return Err(Status::method_not_allowed());
            }
            document(api, &request, other, &path)
        }
    }
}

/// What is neither object nor collection.
fn document(api: &Arc<Api>, request: &Request, route: Route, path: &str) -> Result<Response<Body>, Status> {
    let headers = request.headers();
    let query = Query::of(request.uri())?;
    match route {
        Route::Roots(root) => api.discovery.root(root, headers),
        Route::Group(group) => discovery::group(&group, headers, &query),
        Route::Version { group, version } => discovery::version(&group, &version, headers, &query),
        _ => match path.trim_end_matches('/') {
            "" => discovery::paths(headers, &query),
            "/version" => health::version(headers, &query),
            "/metrics" => Ok(health::metrics()),
            "/openapi/v3" => api.openapi.index(headers),
            "/openapi/v2" => Ok(openapi::v2(headers)),
            path => {
                if let Some(name) = path.strip_prefix("/openapi/v3/") {
                    return api.openapi.document(name, headers, &query);
                }
                health::check(api, path, &query).unwrap_or_else(|| discovery::nothing(path))
            }
        },
    }
}

fn authorise(identity: &Identity, action: &Action<'_>) -> Result<(), Status> {
    if access::allowed(identity, action) { Ok(()) } else { Err(access::forbidden(identity, action)) }
}

fn call_of(request: &Request, identity: Identity) -> Result<Call, Status> {
    let query = Query::of(request.uri())?;
    let accepted = negotiate::accept(request.headers(), &query)?;
    Ok(Call {
        identity,
        headers: request.headers().clone(),
        query,
        accepted,
        draining: request.extensions().get::<Draining>().map(|draining| draining.0.clone()),
        warnings: Vec::new(),
    })
}

/// The body, whole and bounded.
pub(crate) async fn body(api: &Api, request: Request) -> Result<Bytes, Status> {
    let limit = api.limits.body_bytes;
    match Limited::new(request.into_body(), limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Status::too_large(&format!("limit is {limit}"))),
        Err(error) => Err(Status::bad_request(format!("the body could not be read: {error}"))),
    }
}

async fn objects(
    api: &Arc<Api>,
    request: Request,
    place: Place,
    verb: &'static str,
    identity: Identity,
) -> Result<Response<Body>, Status> {
    authorise(
        &identity,
        &Action {
            verb,
            group: place.kind.group,
            resource: place.kind.plural,
            subresource: place.subresource_name(),
            namespace: &place.namespace,
            name: &place.name,
        },
    )?;
    if let Some(subresource) = place.subresource {
        return behind(api, request, place, subresource, verb, identity).await;
    }
    if !place.kind.verbs.contains(&verb) {
        return Err(Status::method_not_allowed());
    }
    let named = !place.name.is_empty();
    // Objects of a namespaced kind are made, and deleted together, within one namespace.
    let nowhere = place.kind.namespaced() && place.namespace.is_empty();
    let mut call = call_of(&request, identity)?;
    let mut response = match verb {
        "get" => read::get(api, &place, &call),
        "list" => list::list(api, &place, &call).await,
        "watch" => watch::watch(api, &place, &call).await,
        "create" if !(named || nowhere) => {
            let body = body(api, request).await?;
            create::create(api, &place, &mut call, &body).await
        }
        "update" if named => {
            let body = body(api, request).await?;
            update::update(api, &place, &mut call, &body).await
        }
        "patch" if named => {
            let body = body(api, request).await?;
            patch::patch(api, &place, &mut call, &body).await
        }
        "delete" => {
            let body = body(api, request).await?;
            delete::delete(api, &place, &mut call, &body).await
        }
        "deletecollection" if !nowhere => {
            let body = body(api, request).await?;
            delete::collection(api, &place, &mut call, &body).await
        }
        _ => Err(Status::method_not_allowed()),
    }?;
    respond::warn(&mut response, &call.warnings);
    Ok(response)
}

/// A request about a subresource.
async fn behind(
    api: &Arc<Api>,
    request: Request,
    place: Place,
    subresource: &'static Subresource,
    verb: &'static str,
    identity: Identity,
) -> Result<Response<Body>, Status> {
    let streams = matches!(
        subresource,
        Subresource::Log
            | Subresource::Attach
            | Subresource::Exec
            | Subresource::PortForward
            | Subresource::Proxy
    );
    if !subresource.verbs().contains(&verb) {
        return Err(Status::method_not_allowed());
    }
    if streams {
        let query = Query::of(request.uri())?;
        return pods::stream(api, request, &place, subresource, &query).await;
    }
    let mut call = call_of(&request, identity)?;
    let body = match verb {
        "get" => Bytes::new(),
        _ => body(api, request).await?,
    };
    let mut response = match (subresource, verb) {
        (Subresource::Scale(paths), "get") => scale::get(api, &place, paths, &call),
        (Subresource::Scale(paths), "update") => scale::update(api, &place, paths, &mut call, &body).await,
        (Subresource::Scale(paths), "patch") => scale::patch(api, &place, paths, &mut call, &body).await,
        (Subresource::Binding, _) => pods::bind(api, &place, &mut call, &body).await,
        (Subresource::Eviction, _) => pods::evict(api, &place, &mut call, &body).await,
        (_, "get") => read::get(api, &place, &call),
        (_, "update") => update::update(api, &place, &mut call, &body).await,
        (_, "patch") => patch::patch(api, &place, &mut call, &body).await,
        _ => Err(Status::method_not_allowed()),
    }?;
    respond::warn(&mut response, &call.warnings);
    Ok(response)
}
