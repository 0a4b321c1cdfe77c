//! The pages.
use std::sync::Arc;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use super::App;
use super::problem::{Plain, Problem};
pub(super) async fn builds(_app: &App, _p: &[(String, String)], _r: &axum::http::request::Parts) -> Response { Plain(Problem::not_found("page yet")).into_response() }
pub(super) async fn build() -> Plain { Plain(Problem::not_found("page yet")) }
pub(super) async fn log() -> Plain { Plain(Problem::not_found("page yet")) }
pub(super) async fn operation_log() -> Plain { Plain(Problem::not_found("page yet")) }
pub(super) async fn rebuild() -> Plain { Plain(Problem::not_found("page yet")) }
pub(super) async fn submission() -> Plain { Plain(Problem::not_found("page yet")) }
pub(super) async fn configurations() -> Plain { Plain(Problem::not_found("page yet")) }
pub(super) async fn sign_in_form() -> Plain { Plain(Problem::not_found("page yet")) }
pub(super) async fn sign_in() -> Plain { Plain(Problem::not_found("page yet")) }
pub(super) async fn sign_out() -> Plain { Plain(Problem::not_found("page yet")) }
pub(super) async fn style() -> Plain { Plain(Problem::not_found("page yet")) }
pub(super) async fn unknown(State(_): State<Arc<App>>) -> Plain { Plain(Problem::not_found("page yet")) }
