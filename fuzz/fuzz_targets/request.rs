//! A request for an answer, in the form of OpenAI's API.
#![no_main]

imp_flow_fuzz::target!("request");
