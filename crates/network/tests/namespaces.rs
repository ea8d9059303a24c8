//! Real namespaces; needs root, and leaves nothing behind.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use network::{Config, EGRESS_PORT, Network, Place, Protocol};

/// A state folder whose namespaces are removed, however the test ends.
struct State(tempfile::TempDir);

impl State {
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "CI runs these tests as root");
            let _ = std::io::stderr().write_all(b"skipped: making network namespaces needs root\n");
            return None;
        }
        Some(Self(tempfile::tempdir().expect("a temporary folder")))
    }

    fn open(&self) -> Network {
        let config = Config { state_dir: self.0.path().to_owned(), instance: "0a1b2c3d".to_owned() };
        Network::open(config).expect("the network opens")
    }
}

impl Drop for State {
    fn drop(&mut self) {
        Network::remove(self.0.path()).expect("the namespaces are removed");
    }
}

fn listen(network: &Network, place: &Place, address: (Ipv4Addr, u16)) -> TcpListener {
    network.run_in(place, move || TcpListener::bind(address)).unwrap().unwrap()
}

fn dial(network: &Network, place: &Place, address: (Ipv4Addr, u16)) -> std::io::Result<TcpStream> {
    let address = SocketAddr::from(address);
    network.run_in(place, move || TcpStream::connect_timeout(&address, Duration::from_secs(2))).unwrap()
}

fn pod(uid: &str) -> Place {
    Place::Pod(uid.to_owned())
}

#[test]
fn pods_reach_services_and_one_another_and_the_router_reaches_them() {
    let Some(state) = State::new() else { return };
    let network = state.open();
    let (a, b) = (network.attach("pod-a").unwrap(), network.attach("pod-b").unwrap());
    assert_ne!(a.ip, b.ip);

    // A service address, with the Pod's own address as the source.
    let service = network.service_cidr().nth(99);
    let listener = listen(&network, &Place::Router, (service, 80));
    let mut client = dial(&network, &pod("pod-a"), (service, 80)).unwrap();
    let (mut served, from) = listener.accept().unwrap();
    assert_eq!(from.ip(), IpAddr::V4(a.ip));
    served.write_all(b"hi").unwrap();
    let mut answer = [0; 2];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hi");

    // From Pod to Pod, and from the router to a Pod.
    let listener = listen(&network, &pod("pod-b"), (Ipv4Addr::UNSPECIFIED, 8080));
    let _client = dial(&network, &pod("pod-a"), (b.ip, 8080)).unwrap();
    assert_eq!(listener.accept().unwrap().1.ip(), IpAddr::V4(a.ip));
    let _client = dial(&network, &Place::Router, (b.ip, 8080)).unwrap();
    assert_eq!(listener.accept().unwrap().1.ip(), IpAddr::V4(network.router_ip()));

    // Nobody listens there: refused, not lost.
    let refused = dial(&network, &pod("pod-a"), (service, 81)).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn what_leaves_goes_to_the_egress_port_and_keeps_its_destination() {
    let Some(state) = State::new() else { return };
    let network = state.open();
    let a = network.attach("pod-a").unwrap();
    let listener = listen(&network, &Place::Router, (network.router_ip(), EGRESS_PORT));
    let world = (Ipv4Addr::new(198, 51, 100, 7), 443);
    let mut client = dial(&network, &pod("pod-a"), world).unwrap();
    let (mut served, from) = listener.accept().unwrap();
    assert_eq!(from.ip(), IpAddr::V4(a.ip));
    let original = socket2::SockRef::from(&served).original_dst_v4().unwrap();
    assert_eq!(original.as_socket(), Some(SocketAddr::from(world)));
    served.write_all(b"hi").unwrap();
    let mut answer = [0; 2];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hi");
}

/// A UDP packet with any source address, as CAP_NET_RAW allows.
fn send_as(network: &Network, place: &Place, source: Ipv4Addr, to: (Ipv4Addr, u16), text: &str) {
    let length = (28 + text.len()) as u16;
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet.extend(source.octets());
    packet.extend(to.0.octets());
    packet.extend([4000u16, to.1, 8 + text.len() as u16, 0].iter().flat_map(|number| number.to_be_bytes()));
    packet.extend(text.as_bytes());
    // IPPROTO_RAW: the kernel fills in the checksum of the header that we wrote.
    let kind = (socket2::Domain::IPV4, socket2::Type::RAW, Some(socket2::Protocol::from(255)));
    let send = move || {
        let socket = socket2::Socket::new(kind.0, kind.1, kind.2)?;
        socket.set_header_included_v4(true)?;
        socket.send_to(&packet, &SocketAddr::from(to).into())
    };
    network.run_in(place, send).unwrap().unwrap();
}

#[test]
fn no_pod_sends_with_another_s_address() {
    let Some(state) = State::new() else { return };
    let network = state.open();
    let (a, b) = (network.attach("pod-a").unwrap(), network.attach("pod-b").unwrap());
    let c = network.attach("pod-c").unwrap();
    let bind = |place: &Place, address: (Ipv4Addr, u16)| {
        let socket = network.run_in(place, move || std::net::UdpSocket::bind(address)).unwrap().unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket
    };
    let (service, router) = (network.service_cidr().nth(99), network.router_ip());
    let inside = bind(&Place::Router, (service, 53));
    let neighbour = bind(&pod("pod-c"), (Ipv4Addr::UNSPECIFIED, 53));
    let others =
        [b.ip, router, service, network.dns_ip(), Ipv4Addr::new(198, 51, 100, 7), Ipv4Addr::LOCALHOST];
    for (socket, to) in [(&inside, (service, 53)), (&neighbour, (c.ip, 53))] {
        for other in others {
            send_as(&network, &pod("pod-a"), other, to, "forged");
        }
        // Packets of one veth arrive in order: what comes first came with the Pod's own address.
        send_as(&network, &pod("pod-a"), a.ip, to, "own");
        let mut buffer = [0; 64];
        let (read, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..read], from.ip()), (&b"own"[..], IpAddr::V4(a.ip)), "to {}", to.0);
    }
}

#[test]
fn a_pod_may_have_users_of_its_own_who_own_its_namespace() {
    let Some(state) = State::new() else { return };
    let network = state.open();
    let (a, b) = (network.attach_with_users("pod-a").unwrap(), network.attach_with_users("pod-b").unwrap());
    assert!(a.first_id.is_some() && a.first_id != b.first_id);
    assert_eq!(network.attach_with_users("pod-a").unwrap(), a, "completed, not made anew");
    assert_eq!(network.attach("pod-c").unwrap().first_id, None);
    // ioctl_ns(2): who owns it.
    let owner = |netns: &Path| {
        let file = std::fs::File::open(netns).unwrap();
        // SAFETY: NS_GET_USERNS takes no argument and answers with a new descriptor.
        let owner = unsafe { nix::libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&file), 0xb701) };
        std::fs::read_link(format!("/proc/self/fd/{owner}")).unwrap()
    };
    let own = std::fs::read_link("/proc/self/ns/user").unwrap();
    assert_ne!(owner(&a.netns), own);
    assert_ne!(owner(&a.netns), owner(&b.netns));
    assert_eq!(owner(&network.netns("pod-c")), own);
    // It is a network like any other.
    let listener = listen(&network, &pod("pod-b"), (Ipv4Addr::UNSPECIFIED, 80));
    let _client = dial(&network, &pod("pod-a"), (b.ip, 80)).unwrap();
    assert_eq!(listener.accept().unwrap().1.ip(), IpAddr::V4(a.ip));
}

#[test]
fn a_pod_s_listeners_are_seen() {
    let Some(state) = State::new() else { return };
    let network = state.open();
    network.attach("pod-a").unwrap();
    let _low = listen(&network, &pod("pod-a"), (Ipv4Addr::LOCALHOST, 80));
    let _both = network.run_in(&pod("pod-a"), || TcpListener::bind("[::]:8080")).unwrap().unwrap();
    let found = network.listening("pod-a").unwrap();
    let ports: Vec<_> =
        found.iter().map(|found| (found.protocol, found.port, found.loopback_only())).collect();
    assert_eq!(ports, [(Protocol::Tcp, 80, true), (Protocol::Tcp, 8080, false)]);
    assert!(network.listening("pod-b").is_err());
}

#[test]
fn attaching_can_be_repeated_completed_and_undone() {
    let Some(state) = State::new() else { return };
    let network = state.open();
    let first = network.attach("pod-a").unwrap();
    assert_eq!(network.attach("pod-a").unwrap(), first);

    // Another process, and the one after a crash.
    let again = state.open();
    assert_eq!(again.service_cidr(), network.service_cidr());
    assert_eq!(again.attached(), [("pod-a".to_owned(), first.ip)]);
    assert_eq!(again.attach("pod-a").unwrap(), first);
    let other = again.attach("pod-b").unwrap();
    assert_ne!(other.ip, first.ip);

    // Half of it is gone, as after a crash or a reboot.
    rustix::mount::unmount(&first.netns, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_eq!(again.attached(), [("pod-b".to_owned(), other.ip)]);
    assert_eq!(again.attach("pod-a").unwrap(), first);
    let _listener = listen(&again, &pod("pod-a"), (Ipv4Addr::UNSPECIFIED, 8080));
    dial(&again, &Place::Router, (first.ip, 8080)).unwrap();

    again.detach("pod-a").unwrap();
    again.detach("pod-a").unwrap();
    assert!(!first.netns.exists());
    assert_eq!(again.attached().len(), 1);
    again.destroy().unwrap();
    assert!(!Path::new(&state.0.path().join("run/netns")).exists());
}

#[test]
fn attaching_is_quick() {
    let Some(state) = State::new() else { return };
    let network = state.open();
    let mut taken: Vec<Duration> = (0..20)
        .map(|index| {
            let start = Instant::now();
            network.attach(&format!("pod-{index}")).unwrap();
            start.elapsed()
        })
        .collect();
    taken.sort_unstable();
    let report = format!("attach: median {:?}, slowest {:?}\n", taken[10], taken[19]);
    let _ = std::io::stderr().write_all(report.as_bytes());
    // Generous: other tests share the machine.
    assert!(taken[10] < Duration::from_millis(50), "{report}");
    network.destroy().unwrap();
}
