//! The whole of it in real namespaces: Services, host ports, DNS, egress and draining. Needs root. The "host" of the
//! test is a network namespace of its own, so nothing of the machine is touched, nor in the way.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use lifecycle::Scope;
use network::{EGRESS_PORT, Network, Place, Protocol};
use serde_json::{Value, json};

use crate::control::Control;
use crate::destination::{Allowance, Refusal};
use crate::egress::{Allowances, Egress};
use crate::handover::Holder;
use crate::model::tests::object;
use crate::model::{Model, Pod, Service, Slice};
use crate::sockets::{Sockets, Spot};
use crate::watch::{Change, Event};
use crate::worker::{Shared, Target, Workers};
use crate::{Limits, dns};

const WITHIN: Duration = Duration::from_secs(20);

/// What was written to the API: path and body.
type Written = Arc<Mutex<Vec<(String, Value)>>>;

fn client(written: &Written) -> kube::Client {
    let written = Arc::clone(written);
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let written = Arc::clone(&written);
        async move {
            let path = request.uri().path().to_owned();
            let body = request.into_body().collect_bytes().await.unwrap();
            let body: Value = serde_json::from_slice(&body).unwrap();
            written.lock().unwrap().push((path, body.clone()));
            let answer = kube::client::Body::from(serde_json::to_vec(&body).unwrap());
            Ok::<_, std::convert::Infallible>(http::Response::new(answer))
        }
    });
    kube::Client::new(service, "default")
}

struct World {
    network: Network,
    control: Control,
    model: Arc<RwLock<Model>>,
    written: Written,
    scope: Scope,
    folder: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.network.destroy().expect("the namespaces are removed");
    }
}

impl World {
    /// In the calling thread's namespace.
    fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = network::Config { state_dir: folder.path().to_owned(), instance: "0a1b2c3e".to_owned() };
        let network = Network::open(config).unwrap();
        let shared = Shared::new(Some(network.clone()), Limits::default(), Allowance::default()).unwrap();
        let workers = Arc::new(Workers::start(shared, 2).unwrap());
        let (model, written, scope): (Arc<RwLock<Model>>, Written, _) =
            (Arc::default(), Arc::default(), Scope::new("test"));
        let control = Control::new(
            "proxy-test".to_owned(),
            client(&written),
            Sockets { network: Some(network.clone()), holder: Holder::new("proxy-test", "1") },
            workers,
            Arc::clone(&model),
            scope.clone(),
            Some(network.pod_cidr()),
            Some(network.service_cidr()),
            Allowances::default(),
        );
        Self { network, control, model, written, scope, folder }
    }

    /// A Pod with an HTTP server that says its name; answers as long as `world` lives.
    fn pod(&self, uid: &'static str) -> Ipv4Addr {
        let ip = self.network.attach(uid).unwrap().ip;
        let listener = self.inside(uid, || TcpListener::bind("[::]:8080")).unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut head = Vec::new();
                    let mut byte = [0];
                    while stream.read(&mut byte).is_ok_and(|count| count == 1) {
                        head.push(byte[0]);
                        if head.ends_with(b"\r\n\r\n") {
                            head.clear();
                            let answer =
                                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{uid}", uid.len());
                            let _ = stream.write_all(answer.as_bytes());
                        }
                    }
                });
            }
        });
        ip
    }

    fn inside<T: Send + 'static>(&self, uid: &str, job: impl FnOnce() -> T + Send + 'static) -> T {
        self.network.run_in(&Place::Pod(uid.to_owned()), job).unwrap()
    }

    fn dial(&self, place: &Place, address: SocketAddr) -> std::io::Result<TcpStream> {
        let dialled =
            self.network.run_in(place, move || TcpStream::connect_timeout(&address, WITHIN)).unwrap()?;
        dialled.set_read_timeout(Some(WITHIN))?;
        Ok(dialled)
    }

    /// GET /, answered by the Pod of that name.
    fn get(&self, place: &Place, address: SocketAddr) -> String {
        let mut stream = self.dial(place, address).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.resize(answer.len() + 1, 0);
            let end = answer.len() - 1;
            stream.read_exact(&mut answer[end..]).unwrap();
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"), "{answer:?}");
        let mut name = [0; 5];
        stream.read_exact(&mut name).unwrap();
        String::from_utf8(name.to_vec()).unwrap()
    }

    fn hear(&mut self, event: Event) {
        self.control.hear(event);
        self.control.settle();
    }

    fn hear_pod(&mut self, uid: &str, deletion: Option<i64>) {
        let mut value = json!({"metadata": {"namespace": "default", "name": uid, "uid": uid}});
        if let Some(grace) = deletion {
            let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(grace);
            value["metadata"]["deletionTimestamp"] = json!(at.to_string());
            value["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        }
        let pod = Pod::parse(&object(value)).unwrap();
        self.hear(Event::Pod(Change::Put(format!("default/{uid}"), pod)));
    }

    fn hear_slice(&mut self, pods: &[(&str, Ipv4Addr)]) {
        let endpoints: Vec<Value> = pods
            .iter()
            .map(
                |(uid, ip)| json!({"addresses": [ip], "targetRef": {"kind": "Pod", "name": uid, "uid": uid}}),
            )
            .collect();
        let slice = Slice::parse(&object(json!({
            "metadata": {"namespace": "default", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"name": "", "port": 8080}], "endpoints": endpoints,
        })));
        self.hear(Event::Slice(Change::Put("default/web-1".to_owned(), slice)));
    }

    /// Waits until so much is in flight to all backends.
    async fn in_flight(&self, count: usize) {
        let routes = self.control.routes.values();
        let backends: Vec<_> = routes.flat_map(|routed| routed.route.balancer.backends().to_vec()).collect();
        let wait = async {
            while backends.iter().map(|backend| backend.pod.in_flight()).sum::<usize>() != count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(WITHIN, wait).await.unwrap();
    }

    async fn written(&self, path: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let wait = async {
            loop {
                let found = self
                    .written
                    .lock()
                    .unwrap()
                    .iter()
                    .find_map(|(at, body)| (at == path && holds(body)).then(|| body.clone()));
                if let Some(body) = found {
                    return body;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(WITHIN, wait)
            .await
            .unwrap_or_else(|_| panic!("{path} is written; there is {:?}", self.written.lock().unwrap()))
    }
}

/// Runs the test in a "host" of its own; skips it, saying so, where that is not allowed.
fn in_a_namespace(test: impl AsyncFnOnce() + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "CI runs these tests as root");
        let _ = std::io::stderr().write_all(b"skipped: making network namespaces needs root\n");
        return;
    }
    let run = move || {
        // SAFETY: only the network namespace of this thread, which is the test's own, is left.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
        for arguments in ["link set lo up", "address add 198.51.100.7/32 dev lo"] {
            let status = std::process::Command::new("ip").args(arguments.split(' ')).status().unwrap();
            assert!(status.success(), "ip {arguments}");
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    };
    std::thread::spawn(run).join().unwrap();
}

fn service(annotations: &Value) -> Service {
    Service::parse(&object(json!({
        "metadata": {"namespace": "default", "name": "web", "annotations": annotations},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.7.7", "ports": [{"port": 80, "nodePort": 30080}]},
    })))
}

#[test]
fn services_are_served_and_pods_drained() {
    in_a_namespace(async || {
        let mut world = World::open();
        let (a, b) = (world.pod("pod-a"), world.pod("pod-b"));
        // Somebody has the port already; the Service may take the next.
        let taken = TcpListener::bind("127.0.0.1:80").unwrap();
        let auto = service(&json!({"proxy.gantry.dev/host-port": "auto"}));
        world.hear(Event::Service(Change::Put("default/web".to_owned(), auto)));
        world.hear_pod("pod-a", None);
        world.hear_pod("pod-b", None);
        world.hear_slice(&[("pod-a", a)]);
        world.control.start_accepting();

        let bound = world.written("/api/v1/namespaces/default/services/web/status", |_| true).await;
        assert_eq!(bound["status"]["loadBalancer"]["ingress"][0]["ports"][0]["port"], 81);
        assert_eq!(bound["status"]["conditions"][0]["reason"], "Listening");
        let cluster = SocketAddr::from(([10, 96, 7, 7], 80));
        for (place, address) in [
            (Place::Pod("pod-b".to_owned()), cluster),
            (Place::Host, "127.0.0.1:81".parse().unwrap()),
            (Place::Host, "[::1]:81".parse().unwrap()),
            (Place::Host, "127.0.0.1:30080".parse().unwrap()),
        ] {
            assert_eq!(world.get(&place, address), "pod-a", "{address}");
        }

        // Replaced: the old one is said to be drained, and gets nothing new, even if a late slice names it.
        world.hear_slice(&[("pod-a", a), ("pod-b", b)]);
        world.hear_pod("pod-a", Some(30));
        let path = "/api/v1/namespaces/default/pods/pod-a/status";
        let said = world.written(path, |_| true).await;
        let condition = &said["status"]["conditions"][0];
        assert_eq!(condition["type"], "proxy-test.proxy.gantry.dev/Drained");
        assert_eq!((&condition["status"], &condition["reason"]), (&json!("True"), &json!("Idle")));
        world.hear_slice(&[("pod-a", a), ("pod-b", b)]);
        for _ in 0..10 {
            assert_eq!(world.get(&Place::Host, "127.0.0.1:81".parse().unwrap()), "pod-b");
        }

        // What is in flight is waited for, but not longer than the deadline: nobody knows when relayed bytes end.
        world.in_flight(0).await;
        let mut stream = world.dial(&Place::Host, "127.0.0.1:81".parse().unwrap()).unwrap();
        stream.write_all(b"no http\r\n\r\n").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        world.hear_pod("pod-b", Some(3));
        let said = world.written("/api/v1/namespaces/default/pods/pod-b/status", |_| true).await;
        assert_eq!(said["status"]["conditions"][0]["reason"], "Deadline");
        world.hear_pod("pod-c", Some(30));
        let said = world.written("/api/v1/namespaces/default/pods/pod-c/status", |_| true).await;
        assert_eq!(said["status"]["conditions"][0]["reason"], "NotRouted");

        // Without leave to move, a taken port is an error that names who has it.
        world.hear(Event::Service(Change::Put("default/web".to_owned(), service(&Value::Null))));
        let refused = |body: &Value| body["status"]["conditions"][0]["reason"] == "PortTaken";
        let said = world.written("/api/v1/namespaces/default/services/web/status", refused).await;
        let message = said["status"]["conditions"][0]["message"].as_str().unwrap();
        assert!(message.contains(&format!("(process {})", std::process::id())), "{message}");
        // Nor may two Services have one port.
        let mut other = service(&Value::Null);
        (other.name, other.cluster_ip, other.ports[0].port) = ("other".to_owned(), None, 30080);
        world.hear(Event::Service(Change::Put("default/other".to_owned(), other)));
        let said = world.written("/api/v1/namespaces/default/services/other/status", refused).await;
        assert_eq!(said["status"]["conditions"][0]["message"], "port 30080 is taken by service default/web");
        world.hear(Event::Service(Change::Removed("default/other".to_owned())));
        drop(taken);
        world.control.retry();
        assert!(world.control.waiting.is_empty());
        world.hear(Event::Service(Change::Removed("default/web".to_owned())));
        assert!(TcpListener::bind("127.0.0.1:30080").is_ok(), "the port is free again");
        world.scope.shutdown(WITHIN).await;
    });
}

#[test]
fn pods_resolve_names_and_reach_the_world_but_not_what_is_the_host_s_alone() {
    in_a_namespace(async || {
        let mut world = World::open();
        let a = world.pod("pod-a");
        world.hear(Event::Service(Change::Put("default/web".to_owned(), service(&Value::Null))));

        let sockets = Sockets { network: Some(world.network.clone()), holder: Holder::new("test", "1") };
        let at = SocketAddr::from((world.network.dns_ip(), 53));
        let socket = sockets.open(&Spot { inside: true, protocol: Protocol::Udp, address: at }).unwrap();
        let server = dns::Server::new(
            Arc::clone(&world.model),
            Some(world.network.clone()),
            world.folder.path().join("none"),
            world.scope.clone(),
        );
        world.scope.spawn("dns", async move {
            let _ = dns::serve_udp(server, socket).await;
        });
        let mut question = Message::new(5, MessageType::Query, OpCode::Query);
        question.add_query(Query::query(
            Name::from_ascii("web.default.svc.cluster.local.").unwrap(),
            RecordType::A,
        ));
        let asking = world.inside("pod-a", || UdpSocket::bind("0.0.0.0:0")).unwrap();
        asking.set_nonblocking(true).unwrap();
        let asking = tokio::net::UdpSocket::from_std(asking).unwrap();
        asking.send_to(&question.to_vec().unwrap(), at).await.unwrap();
        let mut buffer = [0; 512];
        let count = tokio::time::timeout(WITHIN, asking.recv(&mut buffer)).await.unwrap().unwrap();
        let answer = Message::from_vec(&buffer[..count]).unwrap();
        assert_eq!(answer.answers[0].data.to_string(), "10.96.7.7");

        let spot = Spot {
            inside: true,
            protocol: Protocol::Tcp,
            address: (world.network.router_ip(), EGRESS_PORT).into(),
        };
        let socket = sockets.open(&spot).unwrap();
        let allowances = Allowances::default();
        let egress = Target::Egress(Egress::new(allowances.clone()));
        world.control.workers.accept(socket.into(), egress, world.scope.token());
        // This world is an address of its "host", which only local clients may reach.
        let listener = TcpListener::bind("0.0.0.0:7777").unwrap();
        let pod = Place::Pod("pod-a".to_owned());
        let reach = |address: &str| -> bool {
            let dialled = world.dial(&pod, address.parse().unwrap());
            let Ok(mut out) = dialled else { return false };
            out.write_all(b"?").and_then(|()| out.set_nonblocking(false)).unwrap_or_default();
            listener.set_nonblocking(true).unwrap();
            let deadline = std::time::Instant::now() + WITHIN;
            loop {
                if let Ok((mut served, _)) = listener.accept() {
                    served.write_all(b"hello").unwrap();
                    let mut answer = [0; 5];
                    return out.read_exact(&mut answer).is_ok() && &answer == b"hello";
                }
                out.set_nonblocking(true).unwrap();
                let ended = out.peek(&mut [0]);
                out.set_nonblocking(false).unwrap();
                match ended {
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    _ => return false,
                }
                assert!(std::time::Instant::now() < deadline, "{address}: neither refused nor connected");
                std::thread::yield_now();
            }
        };
        let refused = |why: Refusal| why.counter().load(std::sync::atomic::Ordering::Relaxed);
        let total = || Refusal::ALL.iter().map(|why| refused(*why)).sum::<u64>();
        let cases = [
            ("198.51.100.7:7777", Refusal::Host),
            ("169.254.169.254:7777", Refusal::LinkLocal),
            ("0.1.2.3:7777", Refusal::Loopback),
            ("240.0.0.1:7777", Refusal::Group),
        ];
        for (address, why) in cases {
            let before = refused(why);
            assert!(!reach(address), "{address}");
            assert!(refused(why) > before, "{address}: {why:?} is counted");
        }
        // What was dialled is the egress port itself, whether the kernel has followed the connection or not.
        let before = total();
        assert!(!reach(&spot.address.to_string()) && total() > before);
        let allow = |text: &str| allowances.set(a, "pod-a", &Allowance::parse(text).0);
        allow("host, 169.254.169.254");
        assert!(reach("198.51.100.7:7777"));
        // The host gets the metadata service's address while this runs: looked at when it is dialled.
        let status = std::process::Command::new("ip")
            .args(["address", "add", "169.254.169.254/32", "dev", "lo"])
            .status();
        assert!(status.unwrap().success());
        assert!(reach("169.254.169.254:7777"));
        allow("169.254.169.254");
        assert!(!reach("198.51.100.7:7777"));
        allow("");
        assert!(!reach("169.254.169.254:7777"));

        // Endpoints that somebody wrote are no way round.
        let dial = |address: &str, allowance: &str| {
            let (address, allowance) = (address.parse().unwrap(), Allowance::parse(allowance).0);
            world.control.workers.shared.check(address, &allowance).is_ok()
        };
        assert!(!dial("198.51.100.7:7777", "") && dial("198.51.100.7:7777", "198.51.100.0/24"));
        world.scope.shutdown(WITHIN).await;
    });
}
