//! Prints the OpenAPI document of the REST API.

fn main() {
    println!("{:#}", api::openapi::document());
}
