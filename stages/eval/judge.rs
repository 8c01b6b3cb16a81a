//! A language model that judges, behind any endpoint that speaks `OpenAI`'s protocol. Knows requests and when to try again;
//! not what is judged.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::json;
use ureq::Agent;

use crate::{Job, StageError};

/// Where the judge is: the runner puts there what `imp-flow.toml` says.
const ENDPOINT: &str = "IMP_FLOW_JUDGE_ENDPOINT";
/// The key that it wants to see, if it wants one.
const KEY: &str = "OPENAI_API_KEY";
/// A request that fails is sent again so many times.
const ATTEMPTS: u32 = 8;
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// A judge.
pub(super) struct Judge {
    agent: Agent,
    url: String,
    key: Option<String>,
    model: String,
    /// Before a request is sent again; doubled each time.
    pause: Duration,
}

/// What a judge says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) content: String,
    /// The version that the endpoint says it is.
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

/// A pause in which a person who wants to stop is heard.
fn wait(pause: Duration, job: &Job) -> Result<(), StageError> {
    let start = Instant::now();
    while start.elapsed() < pause {
        job.check_cancelled()?;
        thread::sleep(pause.saturating_sub(start.elapsed()).min(Duration::from_millis(100)));
    }
    Ok(())
}

impl Judge {
    /// The one that the machine's settings name.
    pub(super) fn of_this_machine(model: &str) -> Result<Self, StageError> {
        let given = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let endpoint = given(ENDPOINT).ok_or_else(|| {
            StageError::failed(
                format!("there is no endpoint to ask the judge `{model}` at"),
                "set `judge_endpoint` in imp-flow.toml, such as \"https://api.openai.com/v1\", and OPENAI_API_KEY; or leave \
                 `judge` out, to get the answers without a score",
            )
        })?;
        Ok(Self::new(&endpoint, given(KEY), model, Duration::from_secs(1)))
    }

    pub(super) fn new(endpoint: &str, key: Option<String>, model: &str, pause: Duration) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_mins(2)))
            .user_agent(concat!("imp-flow/", env!("CARGO_PKG_VERSION")))
            .build();
        let url = format!("{}/chat/completions", endpoint.trim_end_matches('/'));
        Self { agent: config.into(), url, key, model: model.into(), pause }
    }

    /// What the judge says to a text, in at most three tokens.
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
                return Err(StageError::transient(trouble, "run it again later: it goes on where it was"));
            }
            wait(pause, job)?;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// The inner error is one that may be gone a little later.
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
            Err(error) => return Ok(Err(format!("{}: {error}", self.url))),
        };
        let status = response.status();
        let text = match response.body_mut().read_to_string() {
            Ok(text) => text,
            Err(error) => return Ok(Err(format!("{}: {error}", self.url))),
        };
        if status.as_u16() == 429 || status.is_server_error() {
            return Ok(Err(format!("{} answers {status}", self.url)));
        }
        let refused = |what: String| {
            let help = format!("look at `judge_endpoint` in imp-flow.toml, at `judge.model`, and at {KEY}");
            StageError::failed(format!("{}: {what}", self.url), help)
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
