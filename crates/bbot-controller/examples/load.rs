//! Agents made of nothing but requests, for `bench/controller`: how fast tasks are handed out, and how many agents can wait.
//!
//! ```text
//! load poll URL --agents N --machines M --of K --seconds S [--rate R] [--at-once C] [--count N]
//! load hold URL --agents N --machines M --of K --token T [--rounds R] [--burst B]
//! load life URL --token T --builds N [--bytes B]
//! ```
//!
//! `poll`: agents ask one after the other without waiting, C of them at once or R of them a second. `hold`: N agents wait for a task; then
//! R builds come one by one, and B at once. `life`: N builds, one after the other, are submitted, handed out and answered with a log of B bytes, which is
//! then read. An agent has M of K machines, whose names are `linux-0` to `linux-<K-1>`. The result is one line of JSON.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

type Error = Box<dyn std::error::Error + Send + Sync>;

struct Options {
    mode: String,
    address: String,
    values: HashMap<String, String>,
}

impl Options {
    fn read() -> Result<Self, Error> {
        let mut words = std::env::args().skip(1);
        let mode = words.next().ok_or("poll, hold or life?")?;
        let url = words.next().ok_or("which URL?")?;
        let address = url.trim_start_matches("http://").trim_end_matches('/');
        let mut values = HashMap::new();
        while let Some(name) = words.next() {
            values.insert(
                name.trim_start_matches('-').to_owned(),
                words.next().ok_or("an option without a value")?,
            );
        }
        Ok(Self {
            mode,
            address: address.to_owned(),
            values,
        })
    }

    fn number(&self, name: &str, default: u64) -> Result<u64, Error> {
        match self.values.get(name) {
            Some(text) => Ok(text.parse()?),
            None => Ok(default),
        }
    }
}

/// A connection that is kept.
struct Client {
    stream: BufReader<TcpStream>,
    host: String,
}

impl Client {
    async fn connect(address: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: BufReader::with_capacity(2048, stream),
            host: address.to_owned(),
        })
    }

    /// One request, one answer: status and body.
    async fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &str,
        body: &str,
    ) -> io::Result<(u16, Vec<u8>)> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\n{headers}Content-Length: {}\r\n\r\n{body}",
            self.host,
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes()).await?;
        let mut line = String::new();
        self.stream.read_line(&mut line).await?;
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok());
        let mut length = 0;
        loop {
            line.clear();
            if self.stream.read_line(&mut line).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let text = line.trim_end().to_ascii_lowercase();
            if text.is_empty() {
                break;
            }
            if let Some(value) = text.strip_prefix("content-length:") {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await?;
        Ok((status.unwrap_or(0), body))
    }
}

/// What an agent sends to be given a task.
fn request(agent: u64, machines: u64, of: u64) -> String {
    let mut text =
        format!(": 1\nagent: agent-{agent}\ntoolchain-name: default\ntoolchain-version: 0.17.0\n");
    for machine in 0..machines {
        // Every agent has others, spread over all.
        let number = (agent * 7 + machine * (of / machines).max(1)) % of;
        text.push_str(&format!(
            ":\nid: linux-{number}-1.1\nname: linux-{number}\nsummary: Linux, number {number} of many\n"
        ));
    }
    text
}

const OURS: &str = "Bbot-Agent: 1\r\nContent-Type: text/manifest\r\n";

fn is_task(answer: &(u16, Vec<u8>)) -> Result<bool, Error> {
    if answer.0 != 200 {
        let text = String::from_utf8_lossy(&answer.1).into_owned();
        return Err(format!("an agent is answered {}: {text}", answer.0).into());
    }
    Ok(answer.1.windows(12).any(|w| w == b"result-url: "))
}

fn quantile(sorted: &[f64], percent: usize) -> f64 {
    let at = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}

async fn poll(options: &Options) -> Result<String, Error> {
    let agents = options.number("agents", 1000)?;
    let (machines, of) = (options.number("machines", 100)?, options.number("of", 500)?);
    let at_once = options.number("at-once", 16)?;
    let rate = options.number("rate", 0)?;
    let count = options.number("count", u64::MAX)?;
    let span = Duration::from_secs(options.number("seconds", 10)?);
    let requests: Arc<Vec<String>> =
        Arc::new((0..agents).map(|a| request(a, machines, of)).collect());
    let next = Arc::new(AtomicU64::new(0));
    let tasks = Arc::new(AtomicU64::new(0));
    let (sender, mut took) = mpsc::unbounded_channel();
    let mut clients = Vec::new();
    for _ in 0..at_once {
        clients.push(Client::connect(&options.address).await?);
    }
    let began = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for mut client in clients {
        let (requests, next, tasks) =
            (Arc::clone(&requests), Arc::clone(&next), Arc::clone(&tasks));
        let sender = sender.clone();
        running.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let due = match rate {
                    0 => began.elapsed(),
                    rate => Duration::from_secs_f64(number as f64 / rate as f64),
                };
                if due >= span || number >= count {
                    return Ok::<_, Error>(());
                }
                tokio::time::sleep_until((began + due).into()).await;
                // From when it was due: a server that falls behind is not to be waited for.
                let sent = if rate == 0 {
                    Instant::now()
                } else {
                    began + due
                };
                let body = &requests[usize::try_from(number)? % requests.len()];
                let answer = client.send("POST", "/?build-task", OURS, body).await?;
                let _ = sender.send(millis(sent.elapsed()));
                if is_task(&answer)? {
                    tasks.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    drop(sender);
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    let seconds = began.elapsed().as_secs_f64();
    let mut all = Vec::new();
    while let Some(one) = took.recv().await {
        all.push(one);
    }
    all.sort_by(f64::total_cmp);
    Ok(format!(
        "{{\"requests\": {}, \"tasks\": {}, \"seconds\": {seconds:.3}, \"p50\": {:.3}, \"p99\": {:.3}}}",
        all.len(),
        tasks.load(Ordering::Relaxed),
        quantile(&all, 50),
        quantile(&all, 99)
    ))
}

/// Submits a package; when it was sent.
async fn submit(
    client: &mut Client,
    token: &str,
    name: &str,
    kind: Option<u64>,
) -> Result<Instant, Error> {
    let only = kind.map_or(String::new(), |n| {
        format!(", \"configurations\": [\"c{n}\"]")
    });
    let body = format!(
        "{{\"name\": \"{name}\", \"version\": \"1\", \
         \"source\": {{\"repository\": {{\"url\": \"https://example.org/1/x\"}}}}{only}}}"
    );
    let headers = format!("Authorization: Bearer {token}\r\nContent-Type: application/json\r\n");
    let sent = Instant::now();
    let (status, text) = client
        .send("POST", "/api/v1/submissions", &headers, &body)
        .await?;
    if status != 201 {
        return Err(format!(
            "a submission is answered {status}: {}",
            String::from_utf8_lossy(&text)
        )
        .into());
    }
    Ok(sent)
}

/// An agent that waits for a task, again and again, and tells when it has one.
async fn ask_for_ever(
    mut client: Client,
    headers: String,
    body: String,
    got: mpsc::UnboundedSender<Instant>,
) -> Result<(), Error> {
    loop {
        let answer = client.send("POST", "/?build-task", &headers, &body).await?;
        if is_task(&answer)? {
            let _ = got.send(Instant::now());
        }
    }
}

async fn hold(options: &Options) -> Result<String, Error> {
    let agents = options.number("agents", 10_000)?;
    let (machines, of) = (options.number("machines", 100)?, options.number("of", 500)?);
    let (rounds, burst) = (
        options.number("rounds", 50)?,
        options.number("burst", 1000)?,
    );
    let token = options.values.get("token").ok_or("--token?")?.clone();
    let (sender, mut got) = mpsc::unbounded_channel();
    let mut running = tokio::task::JoinSet::new();
    let waits = format!("{OURS}Bbot-Wait: 60\r\n");
    for agent in 0..agents {
        let client = Client::connect(&options.address).await?;
        running.spawn(ask_for_ever(
            client,
            waits.clone(),
            request(agent, machines, of),
            sender.clone(),
        ));
        if agent % 500 == 499 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    let mut client = Client::connect(&options.address).await?;
    let held = async |client: &mut Client| -> Result<u64, Error> {
        let (_, text) = client.send("GET", "/metrics", "", "").await?;
        let text = String::from_utf8(text)?;
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix("bbot_controller_held_requests "));
        Ok(line.ok_or("no figure of held requests")?.trim().parse()?)
    };
    let patience = Instant::now();
    while held(&mut client).await? < agents {
        if patience.elapsed() > Duration::from_secs(120) {
            return Err("the agents are not all held within two minutes".into());
        }
        if let Some(ended) = running.try_join_next() {
            ended??;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // Whoever started this looks at the server's memory now.
    println!("held");
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    let mut one = Vec::new();
    for round in 0..rounds {
        let sent = submit(
            &mut client,
            &token,
            &format!("one-{round}"),
            Some(round % of),
        )
        .await?;
        let at = got.recv().await.ok_or("no agent is left")?;
        one.push(millis(at.saturating_duration_since(sent)));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    one.sort_by(f64::total_cmp);
    let began = Instant::now();
    let mut queued = 0;
    let mut number = 0;
    while queued < burst {
        submit(&mut client, &token, &format!("many-{number}"), None).await?;
        number += 1;
        queued += of;
    }
    let submitted = began.elapsed();
    for _ in 0..queued {
        tokio::time::timeout(Duration::from_secs(60), got.recv())
            .await?
            .ok_or("no agent is left")?;
    }
    let all = began.elapsed();
    running.abort_all();
    Ok(format!(
        "{{\"one_p50\": {:.3}, \"one_p99\": {:.3}, \"burst\": {queued}, \"submitted\": {:.3}, \"all_out\": {:.3}}}",
        quantile(&one, 50),
        quantile(&one, 99),
        submitted.as_secs_f64(),
        all.as_secs_f64()
    ))
}

/// What a JSON text or a manifest has under this name, when it is a plain word.
fn word<'a>(text: &'a str, before: &str) -> Result<&'a str, Error> {
    let from = text
        .find(before)
        .ok_or_else(|| format!("no {before:?} in {text:?}"))?;
    let rest = &text[from + before.len()..];
    let end = rest.find(['"', '\n']).unwrap_or(rest.len());
    Ok(&rest[..end])
}

/// The whole answer to a request whose end is that of the connection.
async fn read_all(address: &str, path: &str) -> Result<Vec<u8>, Error> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}

async fn life(options: &Options) -> Result<String, Error> {
    let builds = options.number("builds", 100)?;
    let bytes = usize::try_from(options.number("bytes", 1000)?)?;
    let token = options.values.get("token").ok_or("--token?")?;
    let mut client = Client::connect(&options.address).await?;
    // Lines that are not all the same: what is stored may be compressed.
    let mut log = String::with_capacity(bytes + 100);
    let mut seed = 1_u64;
    while log.len() < bytes {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        log.push_str(&format!("c++ src/file-{:x}.cxx -> {seed:x}\n", seed >> 48));
    }
    let (mut stored, mut readable) = (Vec::new(), Vec::new());
    for number in 0..builds {
        let name = format!("life-{number}");
        submit(&mut client, token, &name, Some(0)).await?;
        let request = request(0, 1, 1);
        let (_, task) = client.send("POST", "/?build-task", OURS, &request).await?;
        let task = String::from_utf8(task)?;
        let session = word(&task, "session: ")?;
        let result = format!(
            ": 1\nsession: {session}\n:\nname: {name}\nversion: 1\nstatus: success\nupdate-status: success\n\
             update-log:\\\n{log}\\\n"
        );
        let sent = Instant::now();
        let answer = client.send("POST", "/?build-result", OURS, &result).await?;
        stored.push(millis(sent.elapsed()));
        if answer.0 != 200 {
            let text = String::from_utf8_lossy(&answer.1).into_owned();
            return Err(format!("a result is answered {}: {text}", answer.0).into());
        }
        let (_, list) = client
            .send("GET", &format!("/api/v1/builds?package={name}"), "", "")
            .await?;
        let list = String::from_utf8(list)?;
        let path = format!("/api/v1/builds/{}/log/update", word(&list, "\"id\": \"")?);
        let text = read_all(&options.address, &path).await?;
        if text.len() < log.len() || !text.ends_with(&log.as_bytes()[log.len() - 100..]) {
            return Err(format!("the log of {} bytes is read as {}", log.len(), text.len()).into());
        }
        readable.push(millis(sent.elapsed()));
    }
    stored.sort_by(f64::total_cmp);
    readable.sort_by(f64::total_cmp);
    Ok(format!(
        "{{\"builds\": {builds}, \"bytes\": {}, \"stored\": {:.3}, \"readable\": {:.3}}}",
        log.len(),
        quantile(&stored, 50),
        quantile(&readable, 50)
    ))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let options = Options::read()?;
    let line = match options.mode.as_str() {
        "poll" => poll(&options).await?,
        "hold" => hold(&options).await?,
        "life" => life(&options).await?,
        other => return Err(format!("{other}: poll, hold or life?").into()),
    };
    println!("{line}");
    Ok(())
}
