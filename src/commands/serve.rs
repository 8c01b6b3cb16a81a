//! `imp-flow serve`.

use std::{fs::File, io::Read, path::Path, process::ExitCode};

use imp_stages::{
    ask::{self, Opened},
    place::hush_faults,
};
use tokio::net::TcpListener;

use super::{model, session::usage};
use crate::{
    cli::{Common, ServeArgs},
    failure::Failure,
    pipeline::Diagnostic,
    report,
    serve::{self, Key, Options, request::Defaults},
};

/// The variable with the key that clients must send.
const KEY: &str = "IMP_FLOW_API_KEY";
/// Shorter keys are guessed, longer ones are no keys.
const KEY_LENGTHS: std::ops::RangeInclusive<usize> = 16..=4096;

/// Serves a model.
pub(crate) fn serve(args: &ServeArgs, common: &Common) -> Result<ExitCode, Failure> {
    args.answer.check()?;
    hush_faults();
    let key = if args.no_api_key { None } else { key(args.api_key_file.as_deref())? };
    let failed = |what: &str| {
        let what = what.to_string();
        move |source| Failure::Io { what, source }
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed("can't start the server"))?;
    let style = common.style();
    runtime.block_on(async {
        let place = format!("can't listen on {}, port {}", args.host, args.port);
        let (address, is_loopback) = serve::resolve(&args.host, args.port).await.map_err(failed(&place))?;
        if !is_loopback && key.is_none() && !args.no_api_key {
            let problem = Diagnostic::new(format!("{} can be reached from other machines", args.host), None);
            return Err(usage(problem.help(format!(
                "demand a key with --api-key-file or the variable {KEY}, or say --no-api-key to serve anyone"
            ))));
        }
        // Before the model is loaded, which may take a while.
        let listener = TcpListener::bind(address).await.map_err(failed(&place))?;
        let address = listener.local_addr().map_err(failed(&place))?;
        let model = model::find(&args.model, common)?;
        let Opened { speaker, cautions, .. } = ask::open(&model.path, args.answer.place()).map_err(Failure::Stage)?;
        report::cautions(&cautions);
        let warning = match (is_loopback, &key) {
            (true, _) => None,
            (false, None) => Some("anyone who reaches this address can use the model"),
            (false, Some(_)) => Some("what is said, and the key, can be read on the way: this is HTTP without TLS"),
        };
        report::listening(address, &model.name, warning, style);
        let defaults = Defaults {
            max_tokens: args.answer.max_tokens as usize,
            temperature: args.answer.temperature,
            top_p: args.answer.top_p,
        };
        let queue = args.queue as usize;
        let options = Options { name: model.name, key, is_loopback, queue, defaults, style };
        serve::serve(listener, speaker, options).await.map_err(failed("can't go on serving"))
    })?;
    // The thread that computes may be within a step.
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

/// The key of the file, or else of the environment.
fn key(file: Option<&Path>) -> Result<Option<Key>, Failure> {
    let (text, from) = match (file, std::env::var_os(KEY)) {
        (Some(file), _) => {
            let failed = |source| Failure::Io { what: format!("can't read the key in {}", file.display()), source };
            let mut text = String::new();
            let most = *KEY_LENGTHS.end() as u64 + 2;
            File::open(file).and_then(|file| file.take(most).read_to_string(&mut text)).map_err(failed)?;
            (text, file.display().to_string())
        }
        (None, Some(text)) => (text.to_string_lossy().into_owned(), format!("the variable {KEY}")),
        (None, None) => return Ok(None),
    };
    let text = text.trim();
    // What an HTTP header can't hold would never be right.
    if KEY_LENGTHS.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(Some(Key::new(text)));
    }
    let (least, most) = (KEY_LENGTHS.start(), KEY_LENGTHS.end());
    let problem =
        Diagnostic::new(format!("{from} holds no key: it must have {least} to {most} letters, digits and signs"), None);
    Err(usage(problem.help("make one, as with `openssl rand -hex 32`")))
}
