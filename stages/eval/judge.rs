//! A language model that judges, behind any endpoint with `OpenAI`'s protocol: requests, and when to send one again.
//! Independent of what is judged.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::json;
use ureq::{Agent, unversioned::resolver::DefaultResolver};

use crate::{
    Job, StageError,
    contract::setting::Setting,
    net::{
        address::redacted,
        proxy::{Named, Proxies, forward::Forwarding},
    },
};

/// Where the judge is.
pub(super) const ENDPOINT: Setting = Setting {
    key: "judge_endpoint",
    variable: "IMP_FLOW_JUDGE_ENDPOINT",
    about: "the address of a language model that scores answers, with OpenAI's protocol",
};
/// The variable with the key for the endpoint, if it needs one.
const KEY: &str = "OPENAI_API_KEY";
/// How many times a request is sent before it counts as failed.
const ATTEMPTS: u32 = 8;
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// A judge.
pub(super) struct Judge {
    agent: Agent,
    /// For messages: the proxy on the way, if there is one.
    through: String,
    url: String,
    key: Option<String>,
    model: String,
    /// Before a request is sent again; doubled each time.
    pause: Duration,
}

/// An answer of the judge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) content: String,
    /// The model's version, as the endpoint reports it.
    pub(super) model: String,
}

#[derive(Deserialize)]
struct Completion {
    #[serde(default)]
    model: String,
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    content: Option<String>,
}

/// Waits, unless the user stops the stage.
fn wait(pause: Duration, job: &Job) -> Result<(), StageError> {
    let start = Instant::now();
    while start.elapsed() < pause {
        job.check_cancelled()?;
        thread::sleep(pause.saturating_sub(start.elapsed()).min(Duration::from_millis(100)));
    }
    Ok(())
}

impl Judge {
    /// The judge that the machine's settings name.
    pub(super) fn of_this_machine(model: &str) -> Result<Self, StageError> {
        let endpoint = ENDPOINT.value().ok_or_else(|| {
            let help = format!(
                "set `{}` in imp-flow.toml, such as \"https://api.openai.com/v1\", and {KEY}; or leave `judge` out to get the \
                 answers without a score",
                ENDPOINT.key
            );
            StageError::failed(format!("no endpoint is set for the judge `{model}`"), help)
        })?;
        let key = std::env::var(KEY).ok().filter(|key| !key.is_empty());
        Ok(Self::new(&endpoint, key, model, Duration::from_secs(1), &Proxies::from_env()?))
    }

    pub(super) fn new(endpoint: &str, key: Option<String>, model: &str, pause: Duration, proxies: &Proxies) -> Self {
        let url = format!("{}/chat/completions", endpoint.trim_end_matches('/'));
        let named = proxies.of_url(&url);
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_mins(2)))
            .proxy(named.map(|named| named.proxy.clone()))
            .user_agent(concat!("imp-flow/", env!("CARGO_PKG_VERSION")))
            .build();
        let agent = Agent::with_parts(config, Forwarding::default(), DefaultResolver::default());
        Self { agent, through: named.map(Named::through).unwrap_or_default(), url, key, model: model.into(), pause }
    }

    /// The judge's answer to a text, at most three tokens long.
    pub(super) fn ask(&self, text: &str, temperature: f64, job: &Job) -> Result<Reply, StageError> {
        let (mut pause, mut attempt) = (self.pause, 0);
        loop {
            attempt += 1;
            let trouble = match self.request(text, temperature)? {
                Ok(reply) => return Ok(reply),
                Err(trouble) => trouble,
            };
            tracing::warn!("attempt {attempt} of {ATTEMPTS}: {trouble}");
            if attempt == ATTEMPTS {
                return Err(StageError::transient(trouble, "run it again later: it resumes where it was"));
            }
            wait(pause, job)?;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Sends one request. The inner error is temporary: the request can be sent again.
    fn request(&self, text: &str, temperature: f64) -> Result<Result<Reply, String>, StageError> {
        let mut request = self.agent.post(&self.url).header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let body = json!({
            "model": self.model, "max_tokens": 3, "temperature": temperature,
            "messages": [{"role": "user", "content": text}],
        });
        let mut response = match request.send(body.to_string()) {
            Ok(response) => response,
            Err(error) => return Ok(Err(format!("{}{}: {error}", redacted(&self.url), self.through))),
        };
        let status = response.status();
        let text = match response.body_mut().read_to_string() {
            Ok(text) => text,
            Err(error) => return Ok(Err(format!("{}: {error}", redacted(&self.url)))),
        };
        if status.as_u16() == 429 || status.is_server_error() {
            return Ok(Err(format!("{} answers {status}", redacted(&self.url))));
        }
        let refused = |what: String| {
            let help = format!("check `{}` in imp-flow.toml, `judge.model`, and {KEY}", ENDPOINT.key);
            StageError::failed(format!("{}: {what}", redacted(&self.url)), help)
        };
        if !status.is_success() {
            let said: String = text.chars().take(200).collect();
            return Err(refused(format!("{status}: {said}")));
        }
        let completion: Completion =
            serde_json::from_str(&text).map_err(|error| refused(format!("not a chat completion: {error}")))?;
        let choice = completion.choices.into_iter().next().ok_or_else(|| refused("no choice in its answer".into()))?;
        Ok(Ok(Reply { content: choice.message.content.unwrap_or_default(), model: completion.model }))
    }
}
