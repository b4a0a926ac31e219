//! What a resource says of itself: the rows of the table that requests are sent on by and that the
//! OpenAPI document is made from.
//!
//! What only the document needs is kept with the feature `schema` alone: the shipped program has
//! none of it but the document.

use std::future::Future;
use std::pin::Pin;

use super::parameters::Parameter;
use super::reply::Answered;
use super::request::Asked;
use super::{
    artifacts, commands, document, events, health, keys, link, logs, operations, orders, services,
    status, volumes, workloads,
};

/// All resources, a file each.
pub(super) static TABLE: &[&[Route]] = &[
    artifacts::ROUTES,
    document::ROUTES,
    events::ROUTES,
    health::ROUTES,
    keys::ROUTES,
    link::ROUTES,
    logs::ROUTES,
    operations::ROUTES,
    orders::ROUTES,
    services::ROUTES,
    status::ROUTES,
    volumes::ROUTES,
    commands::ROUTES,
    workloads::ROUTES,
];

/// Gives the answer. Owns all that it needs, so that it can go on when its client went away.
pub(super) type Handler = fn(Asked) -> Pin<Box<dyn Future<Output = Answered> + Send>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Post,
    Delete,
}

impl Method {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Delete => "DELETE",
        }
    }
}

/// The body of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Body {
    pub(super) media_type: &'static str,
    /// Most bytes.
    pub(super) most: usize,
    /// What it is called in what is said of it, such as `a signed order`.
    pub(super) name: &'static str,
    #[cfg(feature = "schema")]
    pub(super) shape: Shape,
}

impl Body {
    /// JSON that is read as a `T`.
    pub(super) const fn json<T: Shaped>(name: &'static str, most: usize) -> Self {
        Self {
            media_type: super::reply::JSON,
            most,
            name,
            #[cfg(feature = "schema")]
            shape: T::SHAPE,
        }
    }
}

/// One method on one resource.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route {
    pub(super) method: Method,
    /// Parts in braces are names: `/v1/volumes/{name}`.
    pub(super) path: &'static str,
    pub(super) handler: Handler,
    /// What it changes, after "may"; readers may do what changes nothing.
    pub(super) changes: Option<&'static str>,
    pub(super) parameters: &'static [Parameter],
    pub(super) body: Option<Body>,
    #[cfg(feature = "schema")]
    pub(super) words: Words,
}

/// What the document says of a route.
#[cfg(feature = "schema")]
#[derive(Clone, Copy, Debug)]
pub(super) struct Words {
    pub(super) summary: &'static str,
    pub(super) description: &'static str,
    pub(super) answers: &'static [Answer],
}

impl Route {
    /// Reads something.
    pub(super) const fn get(path: &'static str, handler: Handler) -> Self {
        Self::new(Method::Get, path, None, handler)
    }

    /// Does something that those may who "may `changes`".
    pub(super) const fn post(path: &'static str, changes: &'static str, handler: Handler) -> Self {
        Self::new(Method::Post, path, Some(changes), handler)
    }

    /// Removes something, as above.
    pub(super) const fn delete(
        path: &'static str,
        changes: &'static str,
        handler: Handler,
    ) -> Self {
        Self::new(Method::Delete, path, Some(changes), handler)
    }

    const fn new(
        method: Method,
        path: &'static str,
        changes: Option<&'static str>,
        handler: Handler,
    ) -> Self {
        Self {
            method,
            path,
            handler,
            changes,
            parameters: &[],
            body: None,
            #[cfg(feature = "schema")]
            words: Words { summary: "", description: "", answers: &[] },
        }
    }

    /// Its parameters, those in the path included.
    pub(super) const fn takes(mut self, parameters: &'static [Parameter]) -> Self {
        self.parameters = parameters;
        self
    }

    pub(super) const fn reads(mut self, body: Body) -> Self {
        self.body = Some(body);
        self
    }

    /// What it does, in a few words and in some more.
    #[cfg_attr(not(feature = "schema"), expect(unused_mut, unused_variables))]
    pub(super) const fn says(mut self, summary: &'static str, description: &'static str) -> Self {
        #[cfg(feature = "schema")]
        {
            self.words.summary = summary;
            self.words.description = description;
        }
        self
    }

    /// What it answers, beside what every route may answer.
    #[cfg_attr(not(feature = "schema"), expect(unused_mut, unused_variables))]
    pub(super) const fn answers(mut self, answers: &'static [Answer]) -> Self {
        #[cfg(feature = "schema")]
        {
            self.words.answers = answers;
        }
        self
    }

    /// The parts of `path` that the template has names for, if it is of this form.
    pub(super) fn fits<'a>(&self, path: &'a str) -> Option<Vec<(&'static str, &'a str)>> {
        let mut named = Vec::new();
        let mut parts = path.split('/');
        for expected in self.path.split('/') {
            let part = parts.next()?;
            match expected.strip_prefix('{').and_then(|name| name.strip_suffix('}')) {
                Some(name) => named.push((name, part)),
                None if part == expected => {}
                None => return None,
            }
        }
        parts.next().is_none().then_some(named)
    }
}

/// One answer, for the document.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    #[cfg(feature = "schema")]
    pub(super) status: u16,
    #[cfg(feature = "schema")]
    pub(super) about: &'static str,
    #[cfg(feature = "schema")]
    pub(super) media_type: &'static str,
    #[cfg(feature = "schema")]
    pub(super) shape: Shape,
}

#[cfg_attr(not(feature = "schema"), expect(unused_variables))]
impl Answer {
    /// JSON that is written from a `T`.
    pub(super) const fn json<T: Shaped>(status: u16, about: &'static str) -> Self {
        Self::of::<T>(status, super::reply::JSON, about)
    }

    /// Text of a media type.
    pub(super) const fn text(status: u16, media_type: &'static str, about: &'static str) -> Self {
        Self::of::<String>(status, media_type, about)
    }

    /// Why it is not done.
    pub(super) const fn problem(status: u16, about: &'static str) -> Self {
        Self::of::<crate::status::Problem>(status, super::reply::PROBLEM_JSON, about)
    }

    const fn of<T: Shaped>(status: u16, media_type: &'static str, about: &'static str) -> Self {
        Self {
            #[cfg(feature = "schema")]
            status,
            #[cfg(feature = "schema")]
            about,
            #[cfg(feature = "schema")]
            media_type,
            #[cfg(feature = "schema")]
            shape: T::SHAPE,
        }
    }
}

/// Gives the JSON Schema of a type.
#[cfg(feature = "schema")]
pub(super) type Shape = fn(&mut schemars::SchemaGenerator) -> schemars::Schema;

/// What has a JSON Schema; without the feature that makes them, everything.
#[cfg(feature = "schema")]
pub(super) trait Shaped: schemars::JsonSchema {
    const SHAPE: Shape = schemars::SchemaGenerator::subschema_for::<Self>;
}
#[cfg(feature = "schema")]
impl<T: schemars::JsonSchema> Shaped for T {}

/// What has a JSON Schema; without the feature that makes them, everything.
#[cfg(not(feature = "schema"))]
pub(super) trait Shaped {}
#[cfg(not(feature = "schema"))]
impl<T> Shaped for T {}

#[cfg(test)]
mod tests {
    use super::super::parameters::Place;
    use super::*;

    fn all() -> impl Iterator<Item = &'static Route> {
        TABLE.iter().copied().flatten()
    }

    #[test]
    fn every_part_of_a_path_is_declared_and_no_two_routes_are_alike() {
        for route in all() {
            let there = |p: &&Parameter| p.place == Place::Path;
            let declared: Vec<_> =
                route.parameters.iter().filter(there).map(|parameter| parameter.name).collect();
            let named = route.fits(route.path).unwrap();
            let named: Vec<_> = named.into_iter().map(|(name, _)| name).collect();
            assert_eq!(declared, named, "{}", route.path);
            let alike = all().filter(|other| other.path == route.path);
            assert_eq!(alike.filter(|other| other.method == route.method).count(), 1);
        }
    }

    #[test]
    fn a_template_fits_whole_paths_only() {
        let route = Route::get("/v1/a/{name}/b", |_| unreachable!("it is not asked"));
        assert_eq!(route.fits("/v1/a/x/b"), Some(vec![("name", "x")]));
        for other in ["/v1/a/x", "/v1/a/x/b/", "/v1/a/x/b/c", "v1/a/x/b", "/v1/a/x/c", ""] {
            assert_eq!(route.fits(other), None, "{other}");
        }
    }
}
