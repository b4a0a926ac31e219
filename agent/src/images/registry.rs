//! One repository of one registry, as in the OCI distribution specification
//! (<https://github.com/opencontainers/distribution-spec/blob/v1.1.0/spec.md>).
//!
//! In: an image reference. Out: manifests, read whole and still unverified, and blobs as streams
//! from an offset. Anonymous bearer tokens are fetched where the registry asks for them; deliberately
//! not here: credentials.

use std::sync::Arc;

use coracle_core::image::{Digest, ImageRef};
use http::header::{ACCEPT, CONTENT_TYPE, RANGE};
use http::{HeaderMap, HeaderValue, Method};
use serde::Deserialize;
use tokio::time::timeout;

use super::error::ImageError;
use super::manifest::{DOCKER_LIST, DOCKER_MANIFEST, MAX_DOCUMENT, OCI_INDEX, OCI_MANIFEST};
use crate::http_client::headers::{challenge, retry_after};
use crate::http_client::{Client, HttpError, Origin, Policy, Response, Url};

/// Most bytes of a token server's answer, and of an error's body.
const MAX_ANSWER: u64 = 64 << 10;
/// A document may take this many times the time that one piece of it may.
const DOCUMENT_PATIENCE: u32 = 5;

/// One repository.
#[derive(Debug)]
pub(crate) struct Registry {
    client: Client,
    origin: Origin,
    image: ImageRef,
    token: Option<HeaderValue>,
    patience: std::time::Duration,
}

/// An index or a manifest as served.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) bytes: Vec<u8>,
    pub(crate) content_type: Option<String>,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// The host that serves a registry name.
fn host(registry: &str) -> &str {
    match registry {
        "docker.io" | "index.docker.io" => "registry-1.docker.io",
        other => other,
    }
}

/// Where a registry is, by its name in references.
pub(crate) fn origin(registry: &str, plain: bool) -> Option<Origin> {
    Origin::parse(host(registry), !plain)
}

impl Registry {
    pub(crate) fn new(policy: Arc<Policy>, image: &ImageRef) -> Result<Self, ImageError> {
        let plain = origin(image.registry(), true).filter(|origin| policy.plain.contains(origin));
        let origin = plain.or_else(|| origin(image.registry(), false)).ok_or_else(|| {
            ImageError::Absent { registry: image.registry().into(), what: "usable name".into() }
        })?;
        let patience = policy.timeouts.idle * DOCUMENT_PATIENCE;
        let client = Client::new(policy);
        Ok(Self { client, origin, image: image.clone(), token: None, patience })
    }

    /// The digest that a tag stands for, if the registry says it without sending the manifest.
    pub(crate) async fn digest_of_tag(&mut self) -> Result<Option<Digest>, ImageError> {
        let response = match self.get_manifest(&Method::HEAD, self.image.target().to_owned()).await
        {
            Err(ImageError::Answered { status: 405 | 400, .. }) => return Ok(None),
            response => response?,
        };
        let digest = response.headers.get("docker-content-digest");
        let digest = digest.and_then(|value| Digest::parse(value.to_str().ok()?).ok());
        self.client.keep(response);
        Ok(digest)
    }

    /// The index or manifest of a tag or digest.
    pub(crate) async fn manifest(&mut self, target: &str) -> Result<Served, ImageError> {
        let what = format!("manifest {target}");
        let patience = self.patience;
        let host = self.origin.to_string();
        let reading = async {
            let mut response = self.get_manifest(&Method::GET, target.to_owned()).await?;
            let bytes = response.read(MAX_DOCUMENT, &what).await?;
            let content_type = response.headers.get(CONTENT_TYPE);
            let content_type = content_type.and_then(|value| Some(value.to_str().ok()?.to_owned()));
            self.client.keep(response);
            Ok(Served { bytes, content_type })
        };
        let silent = |_| HttpError::Silent { host, after: patience };
        timeout(patience, reading).await.map_err(silent)?
    }

    /// A blob from an offset on. The answer's status is 200 (the whole after all), 206, or 416.
    pub(crate) async fn blob(
        &mut self,
        digest: &Digest,
        offset: u64,
    ) -> Result<Response, ImageError> {
        let mut headers = HeaderMap::new();
        if offset > 0 {
            let range = HeaderValue::try_from(format!("bytes={offset}-"));
            headers.extend(range.ok().map(|range| (RANGE, range)));
        }
        let response = self.get(&Method::GET, &format!("blobs/{digest}"), headers).await?;
        match response.status.as_u16() {
            200 => Ok(response),
            206 | 416 if offset > 0 => Ok(response),
            _ => Err(self.failed(&response, format!("blob {digest}"))),
        }
    }

    /// Keeps the connection of an answer that was read to its end.
    pub(crate) fn keep(&mut self, response: Response) {
        self.client.keep(response);
    }

    async fn get_manifest(
        &mut self,
        method: &Method,
        target: String,
    ) -> Result<Response, ImageError> {
        let kinds = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];
        let accept = kinds.map(|kind| (ACCEPT, HeaderValue::from_static(kind)));
        let mut headers = HeaderMap::new();
        for (name, value) in accept {
            headers.append(name, value);
        }
        let response = self.get(method, &format!("manifests/{target}"), headers).await?;
        match response.status.as_u16() {
            200 => Ok(response),
            404 => Err(ImageError::Absent {
                registry: self.image.registry().into(),
                what: if target == self.image.target() {
                    format!("image {}", self.image)
                } else {
                    format!("manifest {target} of image {}", self.image)
                },
            }),
            _ => Err(self.failed(&response, format!("image {}", self.image))),
        }
    }

    /// One request, with a token if one is asked for.
    async fn get(
        &mut self,
        method: &Method,
        path: &str,
        headers: HeaderMap,
    ) -> Result<Response, ImageError> {
        let path = format!("/v2/{}/{path}", self.image.repository());
        let url = Url { origin: self.origin.clone(), path };
        let mut response = self.client.request(method, &url, &headers, self.token.as_ref()).await?;
        if response.status.as_u16() != 401 || response.origin != self.origin {
            return Ok(response);
        }
        let Some(challenge) = challenge(&response.headers) else { return Ok(response) };
        self.client.check(&self.origin, &challenge.realm)?;
        if response.read(MAX_ANSWER, "answer").await.is_ok() {
            self.client.keep(response);
        }
        let scope = format!("repository:{}:pull", self.image.repository());
        let mut query = vec![("scope", challenge.scope.as_deref().unwrap_or(&scope))];
        query.extend(challenge.service.as_deref().map(|service| ("service", service)));
        let token = self.fetch_token(&challenge.realm.with_query(&query)).await?;
        self.token = Some(token);
        Ok(self.client.request(method, &url, &headers, self.token.as_ref()).await?)
    }

    async fn fetch_token(&mut self, url: &Url) -> Result<HeaderValue, ImageError> {
        let mut response = self.client.request(&Method::GET, url, &HeaderMap::new(), None).await?;
        if response.status.as_u16() != 200 {
            return Err(self.failed(&response, format!("a token for {}", self.image.repository())));
        }
        let bytes = response.read(MAX_ANSWER, "token").await?;
        self.client.keep(response);
        let unusable = || ImageError::Token { host: url.origin.to_string() };
        let answer: Token = serde_json::from_slice(&bytes).map_err(|_| unusable())?;
        let token = answer.token.filter(|token| !token.is_empty());
        let token = token.or(answer.access_token).ok_or_else(unusable)?;
        let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| unusable())?;
        value.set_sensitive(true);
        Ok(value)
    }

    fn failed(&self, response: &Response, what: String) -> ImageError {
        let status = response.status.as_u16();
        let registry = self.image.registry().to_owned();
        match status {
            401 | 403 if response.origin == self.origin || what.starts_with("a token") => {
                let repository = self.image.repository().to_owned();
                ImageError::Denied { registry, repository, status }
            }
            404 => ImageError::Absent { registry, what },
            _ => {
                let retry_after = match status {
                    429 | 503 => retry_after(&response.headers),
                    _ => None,
                };
                ImageError::Answered {
                    host: response.origin.to_string(),
                    status,
                    what,
                    retry_after,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_io_is_served_elsewhere() {
        let at = |name, plain| origin(name, plain).map(|o| (o.tls, o.to_string())).unwrap();
        assert_eq!(at("docker.io", false), (true, "registry-1.docker.io".into()));
        assert_eq!(at("127.0.0.1:5000", true), (false, "127.0.0.1:5000".into()));
        assert_eq!(at("ghcr.io", false), (true, "ghcr.io".into()));
    }
}
