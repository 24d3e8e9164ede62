<?php
header("Content-Type: application/json");
setcookie("a", "1");
setcookie("b", "2");
echo json_encode([
    "language" => "PHP",
    "method" => $_SERVER["REQUEST_METHOD"],
    "uri" => $_SERVER["REQUEST_URI"],
    "query" => $_GET,
    "body" => file_get_contents("php://input"),
    "forwarded" => $_SERVER["HTTP_X_FORWARDED_FOR"] ?? null,
]);
