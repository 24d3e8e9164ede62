# frozen_string_literal: true

require "json"

run(lambda do |env|
  reply = {
    language: "Ruby",
    method: env["REQUEST_METHOD"],
    uri: env["REQUEST_URI"],
    body: env["rack.input"].read,
    forwarded: env["HTTP_X_FORWARDED_FOR"]
  }
  [200, { "content-type" => "application/json" }, [JSON.generate(reply)]]
end)
