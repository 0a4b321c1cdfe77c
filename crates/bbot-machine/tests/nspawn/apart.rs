//! What a container cannot do: its root is nobody, and it sees and reaches nothing but its own.

use std::fmt::Write;
use std::fs;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::fs::MetadataExt;

use super::support::{Guest, leader_of, must_skip, prepare};

fn send(name: &str) -> String {
    format!("tftp -p -b 1468 -r {name} -l /{name} 196.254.111.222\n")
}

#[tokio::test]
async fn its_root_is_nobody_on_the_host_and_has_few_rights() {
    if must_skip() {
        return;
    }
    let mut guest = Guest::boot(&format!(
        "(id -u; grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status) > /told; chmod 4755 /bin/busybox\n{}",
        send("told")
    ))
    .await;
    let told = guest.uploaded("told").await;
    assert!(told.starts_with("0\n"), "{told}");
    assert!(told.contains("NoNewPrivs:\t1"), "{told}");
    assert!(told.contains("Seccomp:\t2"), "{told}");
    let leader = leader_of(&guest.machine.info());
    let status = fs::read_to_string(format!("/proc/{leader}/status")).unwrap();
    let uid = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .unwrap();
    for uid in uid.split_whitespace() {
        assert!(uid.parse::<u32>().unwrap() >= 1_879_048_192, "{status}");
    }
    let bounding = told
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:\t"))
        .map(|hex| u64::from_str_radix(hex.trim(), 16).unwrap())
        .unwrap();
    // MKNOD, SYS_MODULE, SYS_RAWIO, SYS_PTRACE, SYS_RESOURCE, SYS_TIME, LINUX_IMMUTABLE, SYSLOG.
    for right in [27, 16, 17, 19, 24, 25, 9, 34] {
        assert_eq!(bounding & (1 << right), 0, "right {right} in {bounding:x}");
    }

    // Nobody on the host comes to the programs that it has given away.
    let machine = guest.folder.path().join("machine");
    assert_eq!(fs::metadata(&machine).unwrap().mode() & 0o7777, 0o700);
    let program = fs::metadata(machine.join("rootfs/bin/busybox")).unwrap();
    assert_eq!(
        (program.uid(), program.mode() & 0o7777),
        (0, 0o4755),
        "the files are shown as its users' without being given away"
    );
}

#[tokio::test]
async fn two_containers_have_no_user_in_common() {
    if must_skip() {
        return;
    }
    let first = Guest::boot("").await;
    let second = Guest::boot("").await;
    let map = |guest: &Guest| {
        let leader = leader_of(&guest.machine.info());
        let text = fs::read_to_string(format!("/proc/{leader}/uid_map")).unwrap();
        let numbers: Vec<u32> = text
            .split_whitespace()
            .map(|number| number.parse().unwrap())
            .collect();
        assert_eq!((numbers[0], numbers[2]), (0, 65_536));
        numbers[1]
    };
    assert!(map(&first).abs_diff(map(&second)) >= 65_536);
}

/// Each line is a command that must fail; they tell what did not.
fn all_must_fail(commands: &str) -> String {
    let mut script = "exec 3>&1; : > /told\n".to_owned();
    for command in commands
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
    {
        writeln!(
            script,
            "if ({command}) > /said 2>&1; then echo \"DONE: {}: $(head -c 200 /said)\" >> /told; \
             else echo no >> /told; fi",
            command.replace('"', "'").replace('$', "")
        )
        .unwrap();
    }
    script.push_str(&send("told"));
    script
}

#[tokio::test]
async fn it_cannot_touch_the_host() {
    if must_skip() {
        return;
    }
    let pid = std::process::id();
    let commands = format!(
        "
        [ -e /proc/{pid}/exe ] && [ {pid} -gt 100 ]
        kill -0 {pid}
        [ $(ls -d /proc/[0-9]* | wc -l) -gt 20 ]
        echo x > /proc/sys/kernel/hostname
        echo 1 > /proc/sys/vm/drop_caches
        echo h > /proc/sysrq-trigger
        echo x > /proc/sys/kernel/core_pattern
        timeout 1 cat /proc/kmsg | grep -q .
        timeout 1 head -c 1 /proc/kcore | grep -q .
        dmesg
        mknod /dev/disk b 254 0
        mknod /dev/mem c 1 1 && head -c 1 /dev/mem
        mount -t ext4 /dev/vda /root
        mount -o loop /bin/busybox /root
        mount -t devtmpfs x /root
        mount -t debugfs x /root
        mount -t bpf x /root
        mount -o remount,rw /proc/sys; echo x > /proc/sys/kernel/core_pattern
        mount -o remount,rw /sys
        umount /proc/sys; echo 1 > /proc/sys/vm/drop_caches
        umount /proc/kmsg; timeout 1 cat /proc/kmsg | grep -q .
        mount -t proc x /root; echo x > /root/sys/kernel/core_pattern
        echo h > /root/sysrq-trigger
        [ -e /root/{pid}/exe ] && [ {pid} -gt 100 ]
        insmod /bin/busybox
        modprobe loop
        swapon /bin/busybox
        date -s @1 > /dev/null 2>/said.date; ! grep -q permitted /said.date
        hwclock -w
        chroot /proc/1/root/../../.. test -e /etc/shadow
        echo -1000 > /proc/self/oom_score_adj
        nsenter -t 1 -m true && [ -e /etc/shadow ]
        echo 1 > /sys/class/net/eth0/mtu
        echo 0 > /sys/fs/cgroup/memory/memory.limit_in_bytes
        echo 999999999999 > /sys/fs/cgroup/memory/memory.limit_in_bytes
        echo max > /sys/fs/cgroup/pids/pids.max
        echo max > /sys/fs/cgroup/unified/cgroup.max.descendants
        losetup /dev/loop7 /bin/busybox
        [ -e /dev/net/tun ] && head -c 1 /dev/net/tun
        [ -e /dev/kvm ]
        [ -e /dev/fuse ]
        "
    );
    let count = commands
        .lines()
        .filter(|line| !line.trim().is_empty())
        .count();
    let mut guest = Guest::boot(&all_must_fail(&commands)).await;
    let told = guest.uploaded("told").await;
    assert_eq!(told, "no\n".repeat(count));
}

fn host_addresses() -> Vec<Ipv4Addr> {
    let mut addresses = vec![bbot_machine::wire::AGENT, Ipv4Addr::LOCALHOST];
    addresses.extend(
        nix::ifaddrs::getifaddrs()
            .unwrap()
            .filter_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip())),
    );
    addresses
}

#[tokio::test]
async fn it_reaches_neither_the_host_nor_another_container() {
    if must_skip() {
        return;
    }
    let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let (tcp_port, udp_port) = (
        tcp.local_addr().unwrap().port(),
        udp.local_addr().unwrap().port(),
    );
    // A name that every process of the host's network could connect to.
    let abstract_name = format!("bbot-test-{}", std::process::id());
    let address =
        <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(
            &abstract_name,
        )
        .unwrap();
    let local = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();

    let other = "mkdir /www; echo the-word > /www/word; ifconfig eth0:1 196.254.111.77 netmask 255.255.255.0\n\
                 httpd -p 7777 -h /www; echo up > /up; tftp -p -r up -l /up 196.254.111.222\n";
    let mut neighbour = Guest::boot(other).await;
    neighbour.uploaded("up").await;
    let mac = neighbour.machine.mac();

    let mut commands = format!(
        "route add default gw 196.254.111.222; false
         ping -c 1 -W 1 196.254.111.77
         arp -s 196.254.111.77 {mac}; ping -c 1 -W 1 196.254.111.77
         wget -T 1 -q -O - http://196.254.111.77:7777/word
         arping -c 1 -w 1 -I eth0 196.254.111.77
         grep -q '{abstract_name}' /proc/net/unix
         "
    );
    for address in host_addresses() {
        writeln!(
            commands,
            "wget -T 1 -q -O - http://{address}:{tcp_port}/\n\
             timeout 1 tftp -g -r word -l /word {address} {udp_port}"
        )
        .unwrap();
    }
    let count = commands
        .lines()
        .filter(|line| !line.trim().is_empty())
        .count();
    let mut guest = Guest::boot(&all_must_fail(&commands)).await;
    let told = guest.uploaded("told").await;
    assert_eq!(told, "no\n".repeat(count));

    tcp.set_nonblocking(true).unwrap();
    udp.set_nonblocking(true).unwrap();
    local.set_nonblocking(true).unwrap();
    assert!(tcp.accept().is_err() && local.accept().is_err());
    assert!(udp.recv(&mut [0; 10]).is_err());
    // The neighbour is well, and could have been reached by whoever was on its wire.
    assert!(!neighbour.machine.info().contains("ended"));
}

#[tokio::test]
async fn two_containers_of_one_machine_run_at_once() {
    if must_skip() {
        return;
    }
    let script = format!("cat /word > /told; sleep 0.5; {}", send("told"));
    let mut guests = Vec::new();
    for word in ["one", "two"] {
        let (folder, mut spec) = prepare(&script);
        spec.mac = Some(bbot_machine::mac::Mac([2, 0, 0, 0, 0, 9]));
        fs::write(spec.directory.join("rootfs/word"), word).unwrap();
        guests.push(Guest::start(folder, spec).await);
    }
    assert_eq!(guests[0].machine.mac(), guests[1].machine.mac());
    let (left, right) = guests.split_at_mut(1);
    let (one, two) = tokio::join!(left[0].uploaded("told"), right[0].uploaded("told"));
    assert_eq!((one.as_str(), two.as_str()), ("one", "two"));
}
