//! The document that describes the API (OpenAPI 3.1): put together from what stands at each handler, so that it says
//! what is there.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use axum::extract::Extension;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{
    Components, ContentBuilder, InfoBuilder, LicenseBuilder, OpenApi, Ref, RefOr, ResponseBuilder,
    Server,
};
use utoipa::{IntoResponses, ToSchema};

use crate::http::Base;

/// What stands in the name of the way to show a token.
pub(super) const TOKEN: &str = "token";

static DOCUMENT: LazyLock<OpenApi> = LazyLock::new(|| {
    let (_, routes) = utoipa_axum::router::OpenApiRouter::new()
        .nest("/api/v1", super::routes())
        .split_for_parts();
    let mut document = OpenApi::new(
        InfoBuilder::new()
            .title("bbot-controller")
            .version(env!("CARGO_PKG_VERSION"))
            .description(Some(
                "Queue, builds and logs of a build farm. Whatever changes something needs a token. \
                 Errors are a sentence.",
            ))
            .license(Some(LicenseBuilder::new().name("MIT").build()))
            .build(),
        routes.paths,
    );
    let mut components = routes.components.unwrap_or_else(Components::new);
    components.schemas.insert(
        Refusal::name().into_owned(),
        <Refusal as utoipa::PartialSchema>::schema(),
    );
    components.add_security_scheme(
        TOKEN,
        SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build()),
    );
    document.components = Some(components);
    document
});

/// The description of this API.
#[utoipa::path(
    get,
    path = "/openapi.json",
    tag = "about",
    responses((status = 200, description = "An OpenAPI document", body = Object), Reads)
)]
pub(super) async fn get(Extension(base): Extension<Base>) -> Response {
    let mut document = DOCUMENT.clone();
    document.servers = Some(vec![Server::new(base.0)]);
    super::json(StatusCode::OK, &document)
}

/// Why a request is not done.
#[derive(Debug, Serialize, ToSchema)]
#[schema(description = "Why a request is not done.")]
pub(in crate::http) struct Refusal {
    /// One sentence: what, where, how to mend it.
    pub(in crate::http) error: String,
}

/// What each refusal means, whatever is asked for.
fn meaning(status: u16) -> &'static str {
    match status {
        400 => "Something in the request is wrong",
        401 => "It needs a token, or the one shown is not known",
        403 => "The token does not give the right to do this, or a page of another site asks",
        404 => "There is no such thing",
        408 => "The body stopped coming",
        409 => "It cannot be done as things stand",
        410 => "It was here, and is lost",
        413 => "The body is too large",
        421 => "The request is addressed to another host",
        503 => "It cannot be done now: try again after `Retry-After` seconds",
        _ => "Something failed that should not; the controller's log says what",
    }
}

/// Refusals with these codes, and those that every request may get.
fn refusals(codes: &[u16]) -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
    let always = [401, 403, 421, 500, 503];
    let all = codes.iter().chain(&always);
    all.map(|code| {
        let content = ContentBuilder::new()
            .schema(Some(Ref::from_schema_name(Refusal::name())))
            .build();
        let response = ResponseBuilder::new()
            .description(meaning(*code))
            .content("application/json", content)
            .build();
        (code.to_string(), RefOr::T(response))
    })
    .collect()
}

/// How a request that only looks may be refused.
#[derive(Debug)]
pub(super) enum Reads {}

/// How one may be refused that has parameters.
#[derive(Debug)]
pub(super) enum Lists {}

/// How one may be refused that looks at one thing.
#[derive(Debug)]
pub(super) enum Finds {}

/// How one may be refused that reads what is kept outside of the store.
#[derive(Debug)]
pub(super) enum Gets {}

/// How one may be refused that makes something out of its body.
#[derive(Debug)]
pub(super) enum Makes {}

/// How one may be refused that changes something that is there.
#[derive(Debug)]
pub(super) enum Changes {}

impl IntoResponses for Reads {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        refusals(&[])
    }
}

impl IntoResponses for Lists {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        refusals(&[400])
    }
}

impl IntoResponses for Finds {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        refusals(&[400, 404])
    }
}

impl IntoResponses for Gets {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        refusals(&[400, 404, 410])
    }
}

impl IntoResponses for Makes {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        refusals(&[400, 408, 413])
    }
}

impl IntoResponses for Changes {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        refusals(&[400, 404, 408, 413])
    }
}
